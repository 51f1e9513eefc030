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
	if why == "" || p.id != "" {
		return
	}
	if err := p.c.writeTerminationLog(why); err != nil {
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

// writeTerminationLog writes the container's last words for it, if it has a file for
// them and has not written any: the kubelet shows them with the container's state.
func (c *ctr) writeTerminationLog(text string) error {
	mounts := c.c.Spec().Mounts
	i := slices.IndexFunc(mounts, func(m specs.Mount) bool { return path.Clean(m.Destination) == terminationLog })
	if i < 0 {
		return nil
	}
	return thread.InMounts(c.s.mounts, func() error {
		f, err := os.OpenFile(mounts[i].Source, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() > 0 {
			return err
		}
		if _, err := f.WriteString(text + "\n"); err != nil {
			return fmt.Errorf("write %s: %w", mounts[i].Source, err)
		}
		return nil
	})
}
