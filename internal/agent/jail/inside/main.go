package inside

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"

	"github.com/seed-efd44b36/kata/internal/agent/jail/pty"
	"github.com/seed-efd44b36/kata/internal/safepath"
	"golang.org/x/sys/unix"
)

// ControlFD is the descriptor of the socket in a process that runs Main.
const ControlFD = 3

// Main carries out the plan that comes over ControlFD and executes the program.
// It must be called on the main goroutine before anything else. It returns only
// when that failed, the exit status of the process.
func Main() int {
	// All that counts is done by one thread, and that has to be the process's
	// first: its namespaces are what others see and join.
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		_ = unix.Exec("/proc/self/exe", os.Args, os.Environ())
		return 1
	}
	// Until its execve the process has more privileges than anything it may meet
	// in the container's pid namespace. Without this flag those could trace it,
	// read its memory and open its executable through /proc.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 1
	}
	unix.CloseOnExec(ControlFD)
	if slices.Contains(os.Args, Rehearse) && rehearse() != nil {
		return 1
	}
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case Forker:
			return fork()
		case Pod:
			return keepPod()
		}
	}
	// Little memory is used, and nobody waits for a collection or for threads to
	// help with it.
	debug.SetGCPercent(-1)

	c := control{os.NewFile(ControlFD, "control")}
	plan, files, err := c.receivePlan()
	if err != nil {
		if errors.Is(err, io.EOF) {
			return 0 // a spare process that is not needed any more
		}
		_ = c.answer(nil, 0, fmt.Errorf("receive the plan: %w", err))
		return 1
	}
	_ = c.answer(nil, 0, run(c, plan, files))
	return 1
}

// run becomes the container's first process. It returns only an error.
func run(c control, p *Plan, files []*os.File) error {
	want := 3 + len(p.Join)
	if p.CgroupDoors {
		want += 2
	}
	if len(files) != want {
		return fmt.Errorf("plan came with %d descriptors instead of %d", len(files), want)
	}
	stdio, rest := files[:3:3], files[3:]

	if err := joinKeyring(); err != nil {
		return err
	}
	if err := enterNamespaces(p, rest); err != nil {
		return err
	}
	unix.Umask(0) // the modes of what is made from here on are exact
	// After that the container's pid namespace is ours and so is this procfs.
	proc, err := safepath.PrivateProc()
	if err != nil {
		return err
	}
	if p.TimeOffsets != "" {
		if err := proc.Write(proc.Self("timens_offsets"), p.TimeOffsets); err != nil {
			return fmt.Errorf("set the time offsets: %w", err)
		}
	}
	// In any case: the agent's own may be one that spares it.
	if err := proc.Write(proc.Self("oom_score_adj"), strconv.Itoa(p.Process.OOMScoreAdj)); err != nil {
		return fmt.Errorf("set oom_score_adj to %d: %w", p.Process.OOMScoreAdj, err)
	}

	var terminal *pty.PTY
	if p.Root != nil {
		terminal, err = p.Root.SetUp(p.Process.Cwd, p.Process.Terminal)
	} else if p.Process.Terminal {
		terminal, err = pty.Open("/")
	}
	if err != nil {
		return err
	}
	if err := setNames(p); err != nil {
		return err
	}
	for _, kv := range p.Sysctls {
		if err := proc.Write("sys/"+kv[0], kv[1]); err != nil {
			return fmt.Errorf("set sysctl %s: %w", kv[0], err)
		}
	}
	_ = proc.Close()
	if err := setAppArmor(p.Process.AppArmor); err != nil {
		return err
	}

	var master *os.File
	if terminal != nil {
		master = terminal.Master
		if err := terminal.Resize(p.Process.Width, p.Process.Height); err != nil {
			return err
		}
		if err := terminal.Control(); err != nil {
			return err
		}
		stdio = []*os.File{terminal.Slave, terminal.Slave, terminal.Slave}
	}
	return p.Process.run(c, stdio, master)
}

// joinKeyring gives the process a session keyring that nobody else has. It has no
// name: others could have made one of that name.
func joinKeyring() error {
	_, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)
	if err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("make a session keyring: %w", err)
	}
	return nil
}

func enterNamespaces(p *Plan, files []*os.File) error {
	// The directories of this thread must not be those of the others, or it could
	// not change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the working directory: %w", err)
	}
	for i, flags := range p.Join {
		if err := unix.Setns(int(files[i].Fd()), flags); err != nil {
			return fmt.Errorf("join namespaces (flags %#x): %w", flags, err)
		}
		_ = files[i].Close()
	}
	flags := p.Unshare
	if p.CgroupDoors {
		flags &^= unix.CLONE_NEWCGROUP
		in, out := files[len(p.Join)], files[len(p.Join)+1]
		err := rawCgroupNamespace(in.Fd(), out.Fd())
		_, _ = in.Close(), out.Close()
		if err != nil {
			return fmt.Errorf("make a cgroup namespace: %w", err)
		}
	}
	if flags != 0 {
		if err := unix.Unshare(flags); err != nil {
			return fmt.Errorf("make namespaces (flags %#x): %w", flags, err)
		}
	}
	return nil
}

func setNames(p *Plan) error {
	if p.Hostname != "" {
		if err := unix.Sethostname([]byte(p.Hostname)); err != nil {
			return fmt.Errorf("set the hostname to %q: %w", p.Hostname, err)
		}
	}
	if p.Domainname != "" {
		if err := unix.Setdomainname([]byte(p.Domainname)); err != nil {
			return fmt.Errorf("set the domain name to %q: %w", p.Domainname, err)
		}
	}
	return nil
}

// setAppArmor makes the thread's program run under a profile.
func setAppArmor(profile string) error {
	if profile == "" || profile == "unconfined" {
		return nil
	}
	proc, err := safepath.PrivateProc()
	if err != nil {
		return err
	}
	defer func() { _ = proc.Close() }()
	if err := proc.Write(proc.Thread("attr/apparmor/exec"), "exec "+profile); err != nil {
		return fmt.Errorf("apply the AppArmor profile %q, does the guest's kernel have AppArmor and the profile?: %w", profile, err)
	}
	return nil
}
