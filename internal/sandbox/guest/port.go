package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/seed-efd44b36/kata/internal/link"
	"golang.org/x/sys/unix"
)

// DialPort connects to a TCP port on the loopback of the guest, which its
// containers share. The error wraps unix.ECONNREFUSED when nothing listens there.
// The caller closes the stream. The context's end is that of the attempt only.
func (g *Guest) DialPort(ctx context.Context, port uint16) (link.Stream, error) {
	st, err := g.link.Open(ctx, link.Header{Kind: link.KindPort, Port: port})
	if err != nil {
		return nil, fmt.Errorf("connect to port %d: %w", port, err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		err = st.SetReadDeadline(deadline)
	}
	var connected [1]byte
	if err == nil {
		_, err = io.ReadFull(st, connected[:])
	}
	if errors.Is(err, io.EOF) {
		err = unix.ECONNREFUSED
	}
	if err == nil {
		err = st.SetReadDeadline(time.Time{})
	}
	if err != nil {
		_ = st.Close()
		return nil, fmt.Errorf("connect to port %d: %w", port, err)
	}
	return st, nil
}
