package cleanup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxCmdline bounds what is read of a process's argument vector. A VMM's is a
// few KiB.
const maxCmdline = 256 << 10

// killMarked kills every process that has marker among its arguments and runs
// exe, and waits for their ends.
func killMarked(ctx context.Context, marker, exe string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("find processes: %w", err)
	}
	var (
		victims []int // pidfds
		errs    []error
	)
	defer func() {
		for _, fd := range victims {
			unix.Close(fd)
		}
	}()
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		fd, err := pidfdIf(pid, marker, exe)
		if err != nil {
			errs = append(errs, fmt.Errorf("process %d: %w", pid, err))
			continue
		}
		if fd >= 0 {
			victims = append(victims, fd)
		}
	}
	for _, fd := range victims {
		if err := killPidfd(fd); err != nil {
			errs = append(errs, err)
		}
	}
	for _, fd := range victims {
		if err := waitPidfd(ctx, fd); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// pidfdIf returns a pidfd of the process if it is the one that is meant, else
// -1. The pidfd is opened before the process is looked at, so that a pid that
// is used again in between cannot make us kill another.
func pidfdIf(pid int, marker, exe string) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: a thread, or older than the pid
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("pidfd: %w", err)
	}
	dir := "/proc/" + strconv.Itoa(pid)
	if hasArg(dir, marker) && runs(dir, exe) {
		return fd, nil
	}
	unix.Close(fd)
	return -1, nil
}

// hasArg tells whether marker is one of the process's arguments, whole. A
// process that has ended has none.
func hasArg(dir, marker string) bool {
	f, err := os.Open(filepath.Join(dir, "cmdline"))
	if err != nil {
		return false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCmdline))
	if err != nil {
		return false
	}
	args := bytes.Split(b, []byte{0})
	return slices.ContainsFunc(args, func(a []byte) bool { return string(a) == marker })
}

// runs tells whether the process runs exe. An empty exe stands for every VMM
// and file server that the project starts: other programs, such as a shell
// with the sandbox's id in its arguments, must live.
func runs(dir, exe string) bool {
	target, err := os.Readlink(filepath.Join(dir, "exe"))
	if err != nil {
		return false
	}
	target = strings.TrimSuffix(target, " (deleted)")
	base := filepath.Base(target)
	switch {
	case exe == "":
		return strings.HasPrefix(base, "qemu-system-") || base == "virtiofsd"
	case filepath.IsAbs(exe):
		// By identity: what was started may have been a link to it.
		want, err1 := os.Stat(exe)
		got, err2 := os.Stat(filepath.Join(dir, "exe"))
		return target == exe || err1 == nil && err2 == nil && os.SameFile(want, got)
	default:
		return base == exe
	}
}

func killPidfd(fd int) error {
	err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill: %w", err)
	}
	return nil
}

// waitPidfd waits for the end of a process, which need not be our child.
func waitPidfd(ctx context.Context, fd int) error {
	for {
		// A short limit per poll, since a context cannot end one.
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int((50 * time.Millisecond).Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for a killed process: %w", err)
		case ctx.Err() != nil:
			return fmt.Errorf("wait for a killed process: %w", ctx.Err())
		}
	}
}

// killPID kills the process and waits for its end. It must be known for
// another reason, such as its cgroup, that it is to die.
func killPID(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if err := killPidfd(fd); err != nil {
		return err
	}
	return waitPidfd(ctx, fd)
}

// pids reads a file of process ids, one a line. No file: none.
func pids(path string) ([]int, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []int
	for f := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, pid)
	}
	return out, nil
}
