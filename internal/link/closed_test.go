package link

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func TestIsClosed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		err  error
		want bool
	}{
		{"nil", nil, false},
		{"end of stream", io.EOF, true},
		{"broken pipe in an OpError", &net.OpError{Op: "write", Err: unix.EPIPE}, true},
		{"wrapped closed connection", fmt.Errorf("read: %w", net.ErrClosed), true},
		{"full disk", fmt.Errorf("write: %w", unix.ENOSPC), false},
		{"cut short", io.ErrUnexpectedEOF, false},
		{"protocol", errors.New("link protocol violated"), false},
	} {
		if got := IsClosed(tt.err); got != tt.want {
			t.Errorf("%s: IsClosed(%v) = %v, want %v", tt.name, tt.err, got, tt.want)
		}
	}
}
