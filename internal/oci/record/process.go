package record

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// pollInterval is how often somebody who waits for a process looks whether its
// time is over.
const pollInterval = 100 * time.Millisecond

// Process names a process of the host for good: pids come again, with another
// start.
type Process struct {
	PID int `json:"pid"`
	// Start is when it started, in ticks since the host did.
	Start uint64 `json:"start"`
}

// Identify names the process that has a pid now.
func Identify(pid int) (Process, error) {
	_, start, err := stat(pid)
	if err != nil {
		return Process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return Process{PID: pid, Start: start}, nil
}

// Alive tells whether the process lives. One that waits to be reaped does not.
func (p Process) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	status, start, err := stat(p.PID)
	return err == nil && start == p.Start && status != 'Z' && status != 'X'
}

// End waits for the end of the process, and kills it when ctx ends. Another that
// has its pid is left alone.
func (p Process) End(ctx context.Context) error {
	if !p.Alive() {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !p.Alive() { // what is held now is what was meant, or not
		return nil
	}
	killed := false
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(pollInterval/time.Millisecond))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for process %d: %w", p.PID, err)
		case n > 0:
			return nil
		}
		if ctx.Err() != nil && !killed {
			killed = true
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", p.PID, err)
			}
		}
	}
}

// stat reads the status and the start of a process. Its name, which may be
// anything, is in parentheses before them.
func stat(pid int) (status byte, start uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	const startField = 19 // counted from the status
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) <= startField {
		return 0, 0, fmt.Errorf("its stat has %d fields", len(fields))
	}
	start, err = strconv.ParseUint(string(fields[startField]), 10, 64)
	return fields[0][0], start, err
}
