package cri

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	"github.com/moby/spdystream"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Streams are what exec and attach are joined to. What is nil is not asked for,
// and must not be in the request.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize has sizes of the terminal.
	Resize <-chan Size
}

// Size is that of a terminal.
type Size struct{ Width, Height uint16 }

// ExecStream runs a process with streams and returns its exit code.
func (c *Client) ExecStream(ctx context.Context, req *runtime.ExecRequest, s Streams) (int, error) {
	req.Stdin, req.Stdout, req.Stderr = s.Stdin != nil, s.Stdout != nil, s.Stderr != nil
	r, err := c.Exec(ctx, req)
	if err != nil {
		return 0, err
	}
	return c.join(ctx, r.Url, s)
}

// AttachStream joins streams to a container's process until it ends or the
// context does.
func (c *Client) AttachStream(ctx context.Context, req *runtime.AttachRequest, s Streams) error {
	req.Stdin, req.Stdout, req.Stderr = s.Stdin != nil, s.Stdout != nil, s.Stderr != nil
	r, err := c.Attach(ctx, req)
	if err != nil {
		return err
	}
	_, err = c.join(ctx, r.Url, s)
	return err
}

// upgrade opens a connection of streams.
func (c *Client) upgrade(ctx context.Context, rawURL, protocol string) (*spdystream.Connection, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	conn, err := c.dial(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, rawURL, http.NoBody)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "SPDY/3.1")
	req.Header.Set("X-Stream-Protocol-Version", protocol)
	if err := req.Write(conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(resp.Body)
		return nil, errors.Join(fmt.Errorf("streaming server: %s: %s", resp.Status, text), resp.Body.Close(), conn.Close())
	}
	s, err := spdystream.NewConnection(&buffered{Conn: conn, in: in}, false)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go s.Serve(spdystream.NoOpStreamHandler) // ends with the connection, which our callers close
	return s, nil
}

// buffered is a connection of which something has been read ahead.
type buffered struct {
	net.Conn
	in *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

// join opens the streams of exec or attach and copies until the process ends.
func (c *Client) join(ctx context.Context, rawURL string, s Streams) (int, error) {
	conn, err := c.upgrade(ctx, rawURL, "v4.channel.k8s.io")
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()

	open := func(kind string) (*spdystream.Stream, error) {
		st, err := conn.CreateStream(http.Header{"streamType": {kind}}, nil, false)
		if err != nil {
			return nil, err
		}
		return st, st.Wait()
	}
	status, err := open("error")
	if err != nil {
		return 0, fmt.Errorf("open stream: %w", err)
	}
	var outputs sync.WaitGroup
	if s.Stdin != nil {
		in, err := open("stdin")
		if err != nil {
			return 0, fmt.Errorf("open stream: %w", err)
		}
		go func() { // ends with the reader or the connection
			_, _ = io.Copy(in, s.Stdin)
			_ = in.Close()
		}()
	}
	for _, o := range []struct {
		kind string
		to   io.Writer
	}{{"stdout", s.Stdout}, {"stderr", s.Stderr}} {
		if o.to == nil {
			continue
		}
		from, err := open(o.kind)
		if err != nil {
			return 0, fmt.Errorf("open stream: %w", err)
		}
		outputs.Go(func() { _, _ = io.Copy(o.to, from) })
	}
	if s.Resize != nil {
		sizes, err := open("resize")
		if err != nil {
			return 0, fmt.Errorf("open stream: %w", err)
		}
		go func() { // ends when the caller closes the channel
			for size := range s.Resize {
				_ = json.NewEncoder(sizes).Encode(size)
			}
		}()
	}
	answer, err := io.ReadAll(status)
	if err != nil {
		return 0, fmt.Errorf("read the status of the process: %w", err)
	}
	outputs.Wait()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	return exitCode(answer)
}

// exitCode reads what the server says of the end: a Status of the Kubernetes API.
func exitCode(answer []byte) (int, error) {
	if len(answer) == 0 {
		return 0, nil
	}
	var status struct {
		Status, Message string
		Details         struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(answer, &status); err != nil {
		return 0, fmt.Errorf("status of the process: %q: %w", answer, err)
	}
	if status.Status == "Success" {
		return 0, nil
	}
	for _, cause := range status.Details.Causes {
		if cause.Reason == "ExitCode" {
			return strconv.Atoi(cause.Message)
		}
	}
	return 0, errors.New(status.Message)
}

// Forward opens a connection to a port of the pod.
func (c *Client) Forward(ctx context.Context, sandbox string, port int32) (io.ReadWriteCloser, error) {
	r, err := c.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: sandbox, Port: []int32{port}})
	if err != nil {
		return nil, err
	}
	conn, err := c.upgrade(ctx, r.Url, "portforward.k8s.io")
	if err != nil {
		return nil, err
	}
	headers := func(kind string) http.Header {
		return http.Header{"streamType": {kind}, "port": {strconv.Itoa(int(port))}, "requestID": {"0"}}
	}
	failure, err := conn.CreateStream(headers("error"), nil, true)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	data, err := conn.CreateStream(headers("data"), nil, false)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &forwarded{Stream: data, failure: failure, conn: conn}, nil
}

// forwarded is a stream whose end closes the connection that it is on.
type forwarded struct {
	*spdystream.Stream
	failure *spdystream.Stream
	conn    *spdystream.Connection
}

// Read reads from the port. At the end it says what the server says of it.
func (f *forwarded) Read(p []byte) (int, error) {
	n, err := f.Stream.Read(p)
	if n == 0 && errors.Is(err, io.EOF) {
		if text, _ := io.ReadAll(f.failure); len(text) > 0 {
			return 0, fmt.Errorf("forward: %s", text)
		}
	}
	return n, err
}

// Close closes the connection.
func (f *forwarded) Close() error { return errors.Join(f.Stream.Close(), f.conn.Close()) }
