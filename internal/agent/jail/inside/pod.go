package inside

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// Pod is the argument that makes the program the first process of the pid
// namespace that the containers of a pod share: it keeps that in being, and reaps
// what is left in it.
const Pod = "pod"

// nobody is the user that it runs as.
const nobody = 65534

// keepPod waits until the agent closes ControlFD. It returns the exit status.
//
// The containers see this process and may be root. So it has no root directory but
// an empty one, no privileges, and no signal to end it: SIGKILL is not delivered to
// the first process of a namespace from within.
func keepPod() int {
	signal.Ignore() // SIGCHLD as well: the kernel then reaps
	if err := leave(); err != nil {
		fmt.Fprintln(os.Stderr, "container-init: the pod's pid namespace:", err)
		return 1
	}
	control := os.NewFile(ControlFD, "control")
	_, _ = control.Write([]byte{0})
	_, _ = io.Copy(io.Discard, control)
	return 0
}

// leave gives up the guest's files and all privileges.
func leave() error {
	dir, err := os.MkdirTemp("/run", "pod-")
	if err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(dir); err != nil {
		return err
	}
	if err := f.Chdir(); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change the root directory: %w", err)
	}
	// By syscall: of all threads.
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("leave groups: %w", err)
	}
	if err := syscall.Setgid(nobody); err != nil {
		return fmt.Errorf("change the group: %w", err)
	}
	if err := syscall.Setuid(nobody); err != nil {
		return fmt.Errorf("change the user: %w", err)
	}
	return nil
}
