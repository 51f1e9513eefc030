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
	if err := connected(ctx, st); err != nil {
		_ = st.Close()
		return nil, fmt.Errorf("connect to port %d: %w", port, err)
	}
	return st, nil
}

// connected waits for the byte by which the guest says that it has what a stream is
// for. The error wraps unix.ECONNREFUSED when the guest ends the stream instead.
func connected(ctx context.Context, st link.Stream) error {
	if deadline, ok := ctx.Deadline(); ok {
		if err := st.SetReadDeadline(deadline); err != nil {
			return err
		}
	}
	var b [1]byte
	if _, err := io.ReadFull(st, b[:]); errors.Is(err, io.EOF) {
		return unix.ECONNREFUSED
	} else if err != nil {
		return err
	}
	return st.SetReadDeadline(time.Time{})
}
