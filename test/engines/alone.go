package engines

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hostNetwork is an environment variable with the network namespace that this
// program was started from: it is set in the program that runs in others.
const hostNetwork = "KATA_ENGINES_HOST"

const ownNetwork = "/proc/self/ns/net"

// Alone runs this program again in namespaces of mounts and network of its own,
// with a /run that is empty, so that engines can be started there that write by
// fixed names and make bridges and firewall rules. In that program it returns
// true; in the first one, the exit code of the other.
func Alone() (inside bool, code int, err error) {
	outer, err := os.Readlink(ownNetwork)
	if err != nil {
		return false, 1, err
	}
	if host := os.Getenv(hostNetwork); host != "" {
		if host == outer {
			return false, 1, errors.New("in the network namespace of the host, where no engine is to be started")
		}
		return true, 0, settle()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), hostNetwork+"="+outer)
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGTERM}
	if err = cmd.Run(); err == nil {
		return false, 0, nil
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return false, exit.ExitCode(), nil
	}
	return false, 1, err
}

// settle makes the namespaces a place for engines.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for dir, mode := range map[string]string{"/run": "mode=755", "/dev/shm": "mode=1777"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, mode); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	for _, dir := range []string{"/run/netns", "/run/lock"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte("1"), 0o644); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback device: %w", err)
	}
	return netlink.LinkSetUp(lo)
}
