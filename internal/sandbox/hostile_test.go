package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/sandbox/sandboxtest"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"google.golang.org/grpc/codes"
)

// A guest may do whatever it likes. What it must not do is hang the host, end
// it, write to it, or leave something on it. In all these tests the guest, or
// its machine, does something else than it should.

// patience is when a test calls something hung. Nothing here takes longer than
// the timeouts of the configuration and the constants in sandbox.go.
const patience = 60 * time.Second

// Timeouts of the configuration in seconds: one that is never reached, and one
// that is to be reached although the machine may be busy.
const long, short = 60, 3

// within fails the test if f does not return.
func within(t *testing.T, what string, f func() error) error {
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

// rig is a sandbox whose machine is a fake.
type rig struct {
	*Sandbox
	dir     string // of all that the test makes
	machine *sandboxtest.Machine
	guest   *sandboxtest.Guest
}

// newRig makes a sandbox with the given timeouts, and checks at the end of the
// test that it can be closed and that nothing is left.
func newRig(t *testing.T, boot, create int, serve func(*sandboxtest.Machine)) *rig {
	t.Helper()
	needRoot(t)
	// t.TempDir has the test's name in it: too long for the path of a socket.
	dir, err := os.MkdirTemp("", "hostile") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{dir: dir}
	conf := config.Default()
	conf.Hypervisor.Accel, conf.Hypervisor.MachineType = "tcg", "q35"
	conf.Hypervisor.SharedFS = "9p"
	conf.Hypervisor.Vsock, conf.Hypervisor.VhostNet = "off", "off"
	conf.Runtime.StateDir = filepath.Join(r.dir, "state")
	conf.Runtime.CgroupParent = os.Getenv(ownNS)
	conf.Runtime.BootTimeout, conf.Runtime.CreateTimeout = boot, create
	o := Options{
		ID: filepath.Base(r.dir), Config: conf,
		Log:        slog.New(slog.NewTextHandler(t.Output(), nil)),
		HostMounts: hostNS(t),
		Image:      func(context.Context) (guestimage.Image, error) { return guestimage.Image{}, nil },
		Accel:      func(context.Context) vmm.Accel { return vmm.AccelTCG },
		NewMachine: func(vmm.Config, *slog.Logger) (vmm.Machine, error) {
			var err error
			r.machine, err = sandboxtest.NewMachine(serve)
			return r.machine, err
		},
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r.Sandbox = s
	t.Cleanup(func() {
		r.close(t)
		if err := cleanup.RemoveTree(r.dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

// newGuestRig is newRig with a guest that has the given faults.
func newGuestRig(t *testing.T, boot, create int, faults map[string]sandboxtest.Fault) *rig {
	t.Helper()
	g := &sandboxtest.Guest{Faults: faults}
	r := newRig(t, boot, create, g.Serve)
	r.guest = g
	return r
}

// close closes the sandbox, with little patience for the guest, and looks for
// what is left.
func (r *rig) close(t *testing.T) {
	t.Helper()
	err := within(t, "Close", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		return r.Close(ctx)
	})
	if err != nil {
		t.Errorf("Close: %v", err)
	}
	select {
	case <-r.Dead():
	default:
		t.Error("the sandbox is closed but not dead")
	}
	if r.machine != nil && !r.machine.Ended() {
		t.Error("the machine still runs")
	}
	entries, err := os.ReadDir(r.conf.Runtime.StateDir)
	if err != nil || len(entries) > 0 {
		t.Errorf("the state directory has %v, %v; want nothing", entries, err)
	}
	for _, h := range []string{"", "*/"} {
		left, err := filepath.Glob("/sys/fs/cgroup/" + h + filepath.Join(os.Getenv(ownNS), r.ID()))
		if err != nil || len(left) > 0 {
			t.Errorf("cgroups are left: %v, %v", left, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), r.dir) {
		t.Errorf("mounts are left: %v\n%s", err, mounts)
	}
	if err := within(t, "second Close", func() error { return r.Close(context.Background()) }); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// bundle makes a container's bundle; change may be nil.
func (r *rig) bundle(t *testing.T, id string, change func(*specs.Spec)) ContainerOptions {
	t.Helper()
	dir := filepath.Join(r.dir, "bundle-"+id)
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
	return ContainerOptions{ID: id, Bundle: dir, Stdio: Stdio{Stdout: true}}
}

// started boots the sandbox and starts a container.
func (r *rig) started(t *testing.T) *Container {
	t.Helper()
	if err := r.Boot(t.Context(), BootOptions{}); err != nil {
		t.Fatal(err)
	}
	c, err := r.Create(t.Context(), r.bundle(t, "c", nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Init().Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// checkReason checks that a text for a person has the words that tell why, and
// nothing that a terminal would act on.
func checkReason(t *testing.T, text, want string) {
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

// nasty is a text that must not reach a terminal as it is, nor whole.
var nasty = "\x1b]0;owned\a\u009b31m\r\n\u2028 you see me " + strings.Repeat("A", 3<<20)

// faults are the ways to answer a call. The host must go on, and tell the
// reason wherever the fault made it fail.
var faults = []struct {
	name   string
	fault  sandboxtest.Fault
	reason string // empty: the answer is as good as a right one
}{
	{"machine dies", func(g *sandboxtest.Guest, _ *sandboxtest.Call) { g.Machine.End(sandboxtest.ErrKilled) }, sandboxtest.ErrKilled.Error()},
	{"machine powers off", func(g *sandboxtest.Guest, _ *sandboxtest.Call) { g.Machine.End(nil) }, "powered off"},
	{"agent hangs up", func(g *sandboxtest.Guest, _ *sandboxtest.Call) { _ = g.Machine.Port.Close() }, "link"},
	{"rpc stream ends", func(_ *sandboxtest.Guest, c *sandboxtest.Call) { _ = c.Conn.Close() }, "link"},
	{"no answer", func(*sandboxtest.Guest, *sandboxtest.Call) {}, "did not answer"},
	{"garbage on the link", func(g *sandboxtest.Guest, _ *sandboxtest.Call) { _, _ = io.CopyN(g.Machine.Port, rand.Reader, 64<<10) }, "link"},
	{"garbage on the rpc stream", func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
		for i := range 100 {
			c.Raw(append(sandboxtest.Frame(100, c.Stream, byte(i)), strings.Repeat("\xff", 100)...))
		}
	}, "agent"},
	{"answer to another call", func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
		for id := range uint32(50) {
			if id != c.Stream {
				c.Send(id, sandboxtest.TypeResponse, sandboxtest.Response(nil, nil))
			}
		}
	}, "did not answer"},
	{"answer twice", func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
		c.Reply(&agentv1.WaitProcessResponse{ExitCode: 3})
		c.Reply(&agentv1.WaitProcessResponse{ExitCode: 4})
	}, ""},
	{"answer that is not protobuf", func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
		c.Send(c.Stream, sandboxtest.TypeResponse, []byte(strings.Repeat("\xff", 100)))
	}, "agent"},
	{"payload that is not protobuf", func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
		c.Send(c.Stream, sandboxtest.TypeResponse, sandboxtest.Response([]byte("\xff\xff\xff"), nil))
	}, "agent"},
	{"data instead of an answer", func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
		c.Send(c.Stream, sandboxtest.TypeData, []byte("hello"))
	}, "agent"},
	{"too long an answer", func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
		c.Send(c.Stream, sandboxtest.TypeResponse, make([]byte, 5<<20))
	}, "exceed"},
	{"answer of 4 GiB that does not come", func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
		c.Raw(sandboxtest.Frame(1<<32-1, c.Stream, sandboxtest.TypeResponse))
	}, "did not answer"},
	{"half an answer", func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
		c.Raw(append(sandboxtest.Frame(100, c.Stream, sandboxtest.TypeResponse), 1, 2, 3))
		_ = c.Conn.Close()
	}, "agent"},
	{"error with a nasty text", func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Fail(codes.Internal, nasty) }, "you see me"},
	{"error without a text", func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Fail(codes.Internal, "") }, "Internal"},
	{"error of an unknown code", func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Fail(123456, "you see me") }, "you see me"},
	{"not found", func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Fail(codes.NotFound, nasty) }, "you see me"},
	{"deadline exceeded", func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Fail(codes.DeadlineExceeded, "you see me") }, "you see me"},
}

// TestFaults goes through the life of a sandbox with each fault in each call.
func TestFaults(t *testing.T) {
	for _, method := range []string{"Details", "SetupSandbox", "CreateContainer", "StartProcess", "WaitProcess", "DeleteContainer", "Shutdown"} {
		for _, f := range faults {
			t.Run(method+"/"+f.name, func(t *testing.T) {
				t.Parallel()
				boot, create := long, long
				if f.reason == "did not answer" {
					switch method {
					case "Details", "SetupSandbox":
						boot = short
					case "CreateContainer", "StartProcess":
						create = short
					}
				}
				live(t, newGuestRig(t, boot, create, map[string]sandboxtest.Fault{method: f.fault}), method, f.reason)
			})
		}
	}
}

// live goes through the life of a sandbox. The call named method is the one
// that has a fault, for the given reason; none if that is empty.
func live(t *testing.T, r *rig, method, reason string) {
	t.Helper()
	// failed tells whether a step failed; it must do so if one of its calls
	// has the fault.
	failed := func(step string, err error, methods ...string) bool {
		t.Helper()
		faulty := false
		for _, m := range methods {
			faulty = faulty || m == method && reason != ""
		}
		if err == nil && faulty {
			t.Errorf("%s: no error, want one with %q", step, reason)
		}
		if err != nil && !faulty {
			t.Errorf("%s: %v", step, err)
		}
		if err != nil {
			t.Logf("%s: %v", step, err)
			checkReason(t, err.Error(), reason)
		}
		return err != nil
	}
	err := within(t, "Boot", func() error { return r.Boot(t.Context(), BootOptions{Hostname: "h"}) })
	if failed("Boot", err, "Details", "SetupSandbox") {
		return
	}
	var c *Container
	o := r.bundle(t, "c", nil)
	err = within(t, "Create", func() (err error) { c, err = r.Create(t.Context(), o); return err })
	if failed("Create", err, "CreateContainer") {
		if _, err := r.Container("c"); !errors.Is(err, ErrNotFound) {
			t.Errorf("container that could not be created is still there: %v", err)
		}
		return
	}
	p := c.Init()
	err = within(t, "Start", func() error { _, err := p.Start(t.Context()); return err })
	if failed("Start", err, "StartProcess") {
		within(t, "end of a process that could not be started", func() error { <-p.Done(); return nil })
		checkReason(t, p.Exit().Reason, reason)
		return
	}
	if method != "WaitProcess" {
		r.guest.Exit(7, time.Now())
	} else if reason == "did not answer" {
		return // a process may run for ever; Close ends it
	}
	within(t, "end of the process", func() error { <-p.Done(); return nil })
	e := p.Exit()
	switch {
	case method == "WaitProcess" && reason != "":
		if e.Code == 0 {
			t.Errorf("exit %+v: it counts as success", e)
		}
		checkReason(t, e.Reason, reason)
	case method == "WaitProcess":
		if e.Code != 3 {
			t.Errorf("exit %+v, want that which came first", e)
		}
	case e.Code != 7 || e.Reason != "":
		t.Errorf("exit %+v, want 7", e)
	}
	// Delete succeeds whatever the guest says.
	err = within(t, "Delete", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return c.Delete(ctx)
	})
	if err != nil {
		t.Errorf("Delete: %v", err)
	}
}

// TestFaultyLink has a guest that does not even greet as it should.
func TestFaultyLink(t *testing.T) {
	hello := func(version uint16) []byte {
		b := []byte("KATAlink")
		b = binary.BigEndian.AppendUint16(b, version)
		b = binary.BigEndian.AppendUint16(b, version)
		return binary.BigEndian.AppendUint16(b, version)
	}
	for _, tt := range []struct {
		name   string
		serve  func(*sandboxtest.Machine)
		reason string
	}{
		{"says nothing", func(m *sandboxtest.Machine) { <-m.Done() }, "did not answer"},
		{"hangs up", func(m *sandboxtest.Machine) { _ = m.Port.Close() }, "link"},
		{"machine dies", func(m *sandboxtest.Machine) { m.End(sandboxtest.ErrKilled) }, sandboxtest.ErrKilled.Error()},
		{"greets with half a word", func(m *sandboxtest.Machine) { _, _ = m.Port.Write(hello(1)[:5]); <-m.Done() }, "did not answer"},
		{"greets with half a word and hangs up", func(m *sandboxtest.Machine) { _, _ = m.Port.Write(hello(1)[:5]); _ = m.Port.Close() }, "link"},
		{"greets with garbage", func(m *sandboxtest.Machine) { _, _ = io.CopyN(m.Port, rand.Reader, 1<<20); <-m.Done() }, "link"},
		{"greets with a nasty text", func(m *sandboxtest.Machine) { _, _ = m.Port.Write([]byte(nasty)); <-m.Done() }, "link"},
		{"speaks another version", func(m *sandboxtest.Machine) { _, _ = m.Port.Write(hello(77)); <-m.Done() }, "version"},
		{"greets and is silent", func(m *sandboxtest.Machine) { _, _ = m.Port.Write(hello(1)); <-m.Done() }, "did not answer"},
		{"greets and hangs up", func(m *sandboxtest.Machine) { _, _ = m.Port.Write(hello(1)); _ = m.Port.Close() }, "link"},
		{"greets and dies", func(m *sandboxtest.Machine) { _, _ = m.Port.Write(hello(1)); m.End(sandboxtest.ErrKilled) }, sandboxtest.ErrKilled.Error()},
		{"greets and floods", func(m *sandboxtest.Machine) { _, _ = m.Port.Write(hello(1)); _, _ = io.Copy(m.Port, rand.Reader) }, "link"},
		{"greets and opens streams itself", func(m *sandboxtest.Machine) {
			_, _ = m.Port.Write(append(hello(1), 1, 0, 0, 1, 0, 0, 0, 1, 1))
			<-m.Done()
		}, "link"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			timeout := long
			if tt.reason == "did not answer" {
				timeout = short
			}
			r := newRig(t, timeout, long, tt.serve)
			err := within(t, "Boot", func() error { return r.Boot(t.Context(), BootOptions{}) })
			if err == nil {
				t.Fatal("Boot: no error")
			}
			t.Log(err)
			checkReason(t, err.Error(), tt.reason)
			if !strings.Contains(err.Error(), "last words") || !strings.Contains(err.Error(), "next: ") {
				t.Error("the guest's console or a next step is missing")
			}
		})
	}
}

// TestDiesAtAnyTime ends the machine at points in time that have nothing to do
// with what the host is doing.
func TestDiesAtAnyTime(t *testing.T) {
	for i := range 40 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			g := &sandboxtest.Guest{}
			r := newRig(t, long, long, func(m *sandboxtest.Machine) {
				var work sync.WaitGroup
				defer work.Wait()
				work.Go(func() {
					select {
					case <-time.After(time.Duration(i) * 500 * time.Microsecond):
						m.End(sandboxtest.ErrKilled)
					case <-m.Done():
					}
				})
				g.Serve(m)
			})
			err := within(t, "a life", func() error {
				if err := r.Boot(t.Context(), BootOptions{}); err != nil {
					return err
				}
				c, err := r.Create(t.Context(), r.bundle(t, "c", nil))
				if err != nil {
					return err
				}
				if _, err := c.Init().Start(t.Context()); err != nil {
					return err
				}
				<-c.Init().Done()
				return errors.New(c.Init().Exit().Reason)
			})
			t.Log(err)
			checkReason(t, err.Error(), sandboxtest.ErrKilled.Error())
		})
	}
}

// TestCloseAtAnyTime closes the sandbox while it is being started.
func TestCloseAtAnyTime(t *testing.T) {
	for i := range 40 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			r := newGuestRig(t, long, long, nil)
			ended := make(chan error, 1)
			o := r.bundle(t, "c", nil)
			go func() {
				ended <- func() error {
					if err := r.Boot(t.Context(), BootOptions{}); err != nil {
						return err
					}
					c, err := r.Create(t.Context(), o)
					if err != nil {
						return err
					}
					if _, err := c.Init().Start(t.Context()); err != nil {
						return err
					}
					<-c.Init().Done()
					return nil
				}()
			}()
			<-time.After(time.Duration(i) * 500 * time.Microsecond)
			if err := within(t, "Close", func() error { return r.Close(t.Context()) }); err != nil {
				t.Errorf("Close: %v", err)
			}
			err := within(t, "a life", func() error { return <-ended })
			if err != nil {
				checkReason(t, err.Error(), "ended")
			}
		})
	}
}

// TestExits has guests that tell strange things about how a process ended.
func TestExits(t *testing.T) {
	start := time.Now()
	for _, tt := range []struct {
		name string
		resp *agentv1.WaitProcessResponse
		code uint32
	}{
		{"zero", &agentv1.WaitProcessResponse{ExitedAt: start.UnixNano()}, 0},
		{"out of range", &agentv1.WaitProcessResponse{ExitCode: 1<<32 - 1}, 255},
		{"looks like zero", &agentv1.WaitProcessResponse{ExitCode: 1 << 8}, 255},
		{"before the epoch", &agentv1.WaitProcessResponse{ExitCode: 1, ExitedAt: -1 << 63}, 1},
		{"in a far future", &agentv1.WaitProcessResponse{ExitCode: 1, ExitedAt: 1<<63 - 1}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newGuestRig(t, long, long, map[string]sandboxtest.Fault{"WaitProcess": func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Reply(tt.resp) }})
			c := r.started(t)
			within(t, "end of the process", func() error { <-c.Init().Done(); return nil })
			e := c.Init().Exit()
			if e.Code != tt.code {
				t.Errorf("exit code %d, want %d", e.Code, tt.code)
			}
			if e.At.Before(start.Add(-time.Minute)) || e.At.After(time.Now()) {
				t.Errorf("exit time %v is not between the test's begin and now", e.At)
			}
		})
	}
}

// TestEndlessOutput has a guest that never stops writing, with a reader on the
// host that reads and one that does not.
func TestEndlessOutput(t *testing.T) {
	t.Parallel()
	r := newGuestRig(t, long, long, nil)
	r.guest.Stdio = func(s link.Stream, _ link.Header) {
		defer s.Close()
		line := []byte(strings.Repeat("y\n", 8<<10))
		for {
			if _, err := s.Write(line); err != nil {
				return
			}
		}
	}
	if err := r.Boot(t.Context(), BootOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"read", "unread"} {
		c, err := r.Create(t.Context(), r.bundle(t, id, nil))
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.Init().OpenStdio(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		if _, err := c.Init().Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if id == "unread" {
			continue
		}
		if _, err := io.CopyN(io.Discard, out, 16<<20); err != nil {
			t.Fatal(err)
		}
		go func() {
			<-r.Dead()
			// What was under way may be read; then there is an end.
			_, _ = io.Copy(io.Discard, out)
		}()
	}
	r.close(t)
}

// TestNoOutput has a guest that neither writes nor ends its streams.
func TestNoOutput(t *testing.T) {
	t.Parallel()
	r := newGuestRig(t, long, long, nil)
	r.guest.Stdio = func(s link.Stream, _ link.Header) { _, _ = io.Copy(io.Discard, s) }
	c := r.started(t)
	out, err := c.Init().OpenStdio(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, out); read <- err }()
	r.guest.Exit(0, time.Now())
	within(t, "end of the process", func() error { <-c.Init().Done(); return nil })
	r.close(t)
	within(t, "reader", func() error { <-read; return nil })
}

// TestHooksAfterDeath: hooks must run, or be told not to have run, when there
// is no machine any more.
//
// It runs alone, since the tests share their process and thus a cgroup: another
// sandbox that ends would kill the hook.
func TestHooksAfterDeath(t *testing.T) {
	r := newGuestRig(t, long, long, nil)
	mark := filepath.Join(r.dir, "hook")
	if err := r.Boot(t.Context(), BootOptions{}); err != nil {
		t.Fatal(err)
	}
	c, err := r.Create(t.Context(), r.bundle(t, "c", func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >" + mark}}}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	r.machine.End(sandboxtest.ErrKilled)
	<-r.Dead()
	if err := within(t, "Delete", func() error { return c.Delete(t.Context()) }); err != nil {
		t.Errorf("Delete: %v", err)
	}
	var st specs.State
	b, err := os.ReadFile(mark)
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err != nil || st.ID != "c" || st.Status != specs.StateStopped {
		t.Errorf("the hook got %s, %v", b, err)
	}
}

// TestStalledGuestDoesNotHoldUpTheRest: calls that need no answer of the guest
// go on while others wait for one.
func TestStalledGuestDoesNotHoldUpTheRest(t *testing.T) {
	t.Parallel()
	stall := func(*sandboxtest.Guest, *sandboxtest.Call) {}
	r := newGuestRig(t, long, long, map[string]sandboxtest.Fault{
		"CreateExec": stall, "SignalProcess": stall, "PauseContainer": stall, "ResumeContainer": stall,
		"StatsContainer": stall, "ListProcesses": stall, "UpdateContainer": stall, "ResizeTerminal": stall, "DeleteContainer": stall,
	})
	c := r.started(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	for name, f := range map[string]func() error{
		"exec": func() error {
			_, err := c.Exec(ctx, "e", &specs.Process{Args: []string{"x"}, Cwd: "/"}, Stdio{})
			return err
		},
		"signal": func() error { return c.Init().Signal(ctx, 9, true) },
		"pause":  func() error { return c.Pause(ctx) },
		"stats":  func() error { _, err := c.Stats(ctx); return err },
		"ps":     func() error { _, err := c.Processes(ctx); return err },
		"update": func() error { return c.Update(ctx, &specs.LinuxResources{}) },
		"resize": func() error { return c.Init().Resize(ctx, 1, 1) },
	} {
		err := within(t, name, f)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		checkReason(t, err.Error(), "did not answer")
	}
	if st, err := ReadState(r.conf.Runtime.StateDir, r.ID()); err != nil || !st.Alive || len(st.Containers) != 1 {
		t.Errorf("state: %+v, %v", st, err)
	}
}

// TestNothingIsWrittenElsewhere: ids that the guest gets back never become
// paths, so a life in which every text is a path leaves all else as it was.
func TestNothingIsWrittenElsewhere(t *testing.T) {
	t.Parallel()
	path := "../../../" + t.Name()
	say := func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Fail(codes.Internal, path) }
	r := newGuestRig(t, long, long, map[string]sandboxtest.Fault{
		"Details": func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
			c.Reply(&agentv1.DetailsResponse{Version: path, KernelRelease: path})
		},
		"CreateExec":      say,
		"PauseContainer":  say,
		"DeleteContainer": say,
	})
	c := r.started(t)
	before := tree(t, r.dir, r.Dir())
	_, _ = c.Exec(t.Context(), "e", &specs.Process{Args: []string{"x"}, Cwd: "/"}, Stdio{})
	_ = c.Pause(t.Context())
	r.guest.Exit(0, time.Now())
	within(t, "end of the process", func() error { <-c.Init().Done(); return nil })
	for f := range tree(t, r.dir, r.Dir()) {
		if !before[f] {
			t.Errorf("%s is new", f)
		}
	}
}

// tree lists the files below dir, but those below skip.
func tree(t *testing.T, dir, skip string) map[string]bool {
	t.Helper()
	files := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path == skip {
			return filepath.SkipDir
		}
		files[path] = true
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
