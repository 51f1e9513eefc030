package reap

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peek returns the pid of a child that has ended and was not reaped, 0 if there
// is none.
func peek() (int, error) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		switch {
		case err == nil:
			// For a child's end, si_pid is the first field of the union, which is
			// aligned to 8 bytes as it holds pointers. It is 0 if there is none.
			fields := (*struct {
				Signo, Errno, Code, _ int32
				PID                   int32
			})(unsafe.Pointer(&info)) // 20 of the 128 bytes of info
			return int(fields.PID), nil
		case errors.Is(err, unix.ECHILD):
			return 0, nil
		case !errors.Is(err, unix.EINTR):
			return 0, fmt.Errorf("wait for children: %w", err)
		}
	}
}
