package agent

import (
	"context"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/seed-efd44b36/kata/internal/link"
)

// portDialTimeout is what a connection within the guest may take.
const portDialTimeout = 5 * time.Second

// servePort joins the stream with a TCP port on the guest's loopback, which all
// containers share. The first byte back says that it is connected; a stream that
// ends without one, that nothing listens there. It closes the stream.
func (a *Agent) servePort(ctx context.Context, s link.Stream, port uint16) {
	defer s.Close()
	conn, err := dialLoopback(ctx, port)
	if err != nil {
		a.log.Debug("no connection to a port", "port", port, "err", err)
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _, _ = conn.Close(), s.Close() })()
	if _, err := s.Write([]byte{0}); err != nil {
		return
	}
	var sending sync.WaitGroup
	sending.Go(func() {
		_, _ = link.Copy(conn, s)
		_ = conn.CloseWrite()
	})
	_, _ = link.Copy(s, conn)
	_ = s.CloseWrite()
	sending.Wait()
}

func dialLoopback(ctx context.Context, port uint16) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: portDialTimeout}
	var err error
	for _, host := range []string{"127.0.0.1", "::1"} {
		var c net.Conn
		if c, err = d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port)))); err == nil {
			return c.(*net.TCPConn), nil
		}
	}
	return nil, err
}
