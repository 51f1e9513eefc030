package link

import (
	"errors"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// IsClosed tells whether err only says that one side of a stream has gone,
// which for a carrier of bytes is how a stream ends and no failure.
func IsClosed(err error) bool {
	for _, end := range []error{io.EOF, io.ErrClosedPipe, net.ErrClosed, os.ErrClosed, unix.EPIPE, unix.ECONNRESET} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}
