package shim

import (
	"fmt"
	"os"
	"path"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/sandbox/failure"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

// terminationLog is where the kubelet mounts the file for a container's last
// words, unless the pod says otherwise.
const terminationLog = "/dev/termination-log"

// endOutputs is called when the process has ended. If it was the sandbox that died,
// that is said in the outputs: the CRI has a code of an end, but no words, and users
// look into the log of a container.
func (p *process) endOutputs() {
	p.mu.Lock()
	io := p.io
	p.mu.Unlock()
	why := p.lost()
	if io != nil {
		io.End(why)
	}
	if p.id != "" || p.c.last == nil {
		return
	}
	defer p.c.last.Close() // nothing is written by this descriptor
	if why == "" {
		return
	}
	if err := writeLast(p.c.last, why); err != nil {
		p.c.s.logger().Warn("termination log", "container", p.c.id, "error", err)
	}
}

// lost is the line that tells why the process's sandbox died, empty if the process
// ended otherwise.
func (p *process) lost() string {
	sb, _, err := p.c.s.sandbox()
	if e := p.p.Exit(); err != nil || e.Code != report.LostCode || e.Reason == "" {
		return ""
	}
	select {
	case <-sb.Dead():
	default:
		return ""
	}
	_, why := sb.Death()
	if why == nil {
		return "" // it was to end
	}
	return "kata: " + failure.Line(why)
}

// openTerminationLog opens (O_PATH) the file for a container's last words, before its
// process runs: later the path may lead elsewhere, since a pod can have a directory of
// the host in which it puts links. It is nil if there is none that the container may
// write to.
func (s *service) openTerminationLog(sp *specs.Spec) (f *os.File, err error) {
	i := slices.IndexFunc(sp.Mounts, func(m specs.Mount) bool { return path.Clean(m.Destination) == terminationLog })
	if i < 0 || slices.ContainsFunc(sp.Mounts[i].Options, func(o string) bool { return o == "ro" || o == "rro" }) {
		return nil, nil
	}
	err = thread.InMounts(s.mounts, func() error {
		f, err = os.OpenFile(sp.Mounts[i].Source, unix.O_PATH|unix.O_CLOEXEC, 0)
		return err
	})
	return f, err
}

// writeLast writes a container's last words to f (O_PATH), if it has not written any:
// the kubelet shows them with the container's state.
func writeLast(f *os.File, text string) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", f.Name(), err)
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Size() > 0 {
		return err
	}
	if fs.Blocks == 0 { // as procfs, sysfs and cgroups, where writing is a command
		return fmt.Errorf("%s is in a file system that keeps nothing: not written", f.Name())
	}
	w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", f.Name(), err)
	}
	defer w.Close()
	if _, err := w.WriteString(text + "\n"); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	return nil
}
