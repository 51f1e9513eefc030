package sandboxtest

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/vmm"
)

// Timeouts of the configuration in seconds.
const (
	// Long is one that is never reached.
	Long = 60
	// Short is one that is to be reached, with steps before it that are not,
	// although the machine may be busy.
	Short = 3
)

// Rig is what a sandbox with a fake machine is made from.
type Rig struct {
	// Options are for sandbox.New, with the timeouts Long.
	Options sandbox.Options
	// Dir is the directory of all that the test makes.
	Dir string
	// Machine is the machine, once there is one.
	Machine *Machine
}

// NewRig prepares a sandbox whose guest is the given function. At the end of the
// test nothing of the sandbox must be left.
func NewRig(t *testing.T, serve func(*Machine)) *Rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount and to make cgroups")
	}
	// t.TempDir has the test's name in it: too long for the path of a socket.
	dir, err := os.MkdirTemp("", "kata") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	r := &Rig{Dir: dir}
	conf := config.Default()
	conf.Hypervisor.Accel, conf.Hypervisor.MachineType = "tcg", "q35"
	conf.Hypervisor.SharedFS = "9p"
	conf.Hypervisor.Vsock, conf.Hypervisor.VhostNet = "off", "off"
	conf.Runtime.StateDir = filepath.Join(dir, "state")
	conf.Runtime.CgroupParent = os.Getenv(ownNS)
	conf.Runtime.BootTimeout, conf.Runtime.CreateTimeout = Long, Long
	r.Options = sandbox.Options{
		ID: filepath.Base(dir), Config: conf,
		Log:        slog.New(slog.NewTextHandler(t.Output(), nil)),
		HostMounts: hostNS(t),
		Image:      func(context.Context) (guestimage.Image, error) { return guestimage.Image{}, nil },
		Accel:      func(context.Context) vmm.Accel { return vmm.AccelTCG },
		NewMachine: func(c vmm.Config, _ *slog.Logger) (vmm.Machine, error) {
			var err error
			r.Machine, err = NewMachine(serve)
			if err == nil {
				err = r.Machine.hold(c.Share.Server)
			}
			return r.Machine, err
		},
	}
	t.Cleanup(func() {
		r.checkGone(t)
		if err := cleanup.RemoveTree(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

// checkGone looks for what is left of the sandbox.
func (r *Rig) checkGone(t *testing.T) {
	t.Helper()
	if r.Machine != nil && !r.Machine.Ended() {
		t.Error("the machine still runs")
	}
	entries, err := os.ReadDir(r.Options.Config.Runtime.StateDir)
	if err != nil || len(entries) > 0 {
		t.Errorf("the state directory has %v, %v; want nothing", entries, err)
	}
	for _, h := range []string{"", "*/"} {
		left, err := filepath.Glob("/sys/fs/cgroup/" + h + filepath.Join(os.Getenv(ownNS), r.Options.ID))
		if err != nil || len(left) > 0 {
			t.Errorf("cgroups are left: %v, %v", left, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), r.Dir) {
		t.Errorf("mounts are left: %v\n%s", err, mounts)
	}
}

// Bundle makes a container's bundle and returns its directory; change may be
// nil.
func (r *Rig) Bundle(t *testing.T, id string, change func(*specs.Spec)) string {
	t.Helper()
	dir := filepath.Join(r.Dir, "bundle-"+id)
	sp := &specs.Spec{
		Version: "1.2.0",
		Process: &specs.Process{Args: []string{"sh"}, Cwd: "/"},
		Root:    &specs.Root{Path: "rootfs"},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: "pid"}, {Type: "mount"}, {Type: "ipc"}, {Type: "uts"}, {Type: "network"},
		}},
	}
	if change != nil {
		change(sp)
	}
	b, err := json.Marshal(sp)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// CheckReason checks that a text for a person has the words that tell why, and
// nothing that a terminal would act on.
func CheckReason(t *testing.T, text, want string) {
	t.Helper()
	if !strings.Contains(text, want) {
		t.Errorf("the reason %q is not in:\n%s", want, text)
	}
	if len(text) > 16<<10 {
		t.Errorf("the text has %d bytes", len(text))
	}
	for _, c := range text {
		if unicode.IsControl(c) && c != '\n' {
			t.Errorf("the text has the control character %q:\n%q", c, text)
			break
		}
	}
}

// Within runs f and fails the test if it does not return. Nothing that it is
// for takes longer than Long and the constants in internal/sandbox.
func Within(t *testing.T, what string, f func() error) error {
	t.Helper()
	errs := make(chan error, 1)
	go func() { errs <- f() }() // ends with the test's process if it hangs
	select {
	case err := <-errs:
		return err
	case <-time.After(patience):
		t.Fatalf("%s hangs", what)
		return nil
	}
}

// patience is when Within calls something hung.
const patience = 90 * time.Second
