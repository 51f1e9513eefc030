package sandbox_test

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/internal/sandbox/sandboxtest"
	"google.golang.org/grpc/codes"
)

// A guest may do whatever it likes. What it must not do is hang the host, end
// it, write to it, or leave something on it. In all these tests the guest, or
// its machine, does something else than it should.

// rig is a sandbox whose machine is a fake.
type rig struct {
	*sandboxtest.Rig
	*sandbox.Sandbox
	guest *sandboxtest.Guest
}

// newRig makes a sandbox with the given timeouts, which is closed at the end of
// the test.
func newRig(t *testing.T, boot, create int, serve func(*sandboxtest.Machine)) *rig {
	t.Helper()
	r := &rig{Rig: sandboxtest.NewRig(t, serve)}
	r.Options.Config.Runtime.BootTimeout, r.Options.Config.Runtime.CreateTimeout = boot, create
	var err error
	if r.Sandbox, err = sandbox.New(r.Options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.close(t) })
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

// close closes the sandbox, with little patience for the guest.
func (r *rig) close(t *testing.T) {
	t.Helper()
	err := sandboxtest.Within(t, "Close", func() error {
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
	if err := sandboxtest.Within(t, "second Close", func() error { return r.Close(context.Background()) }); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// bundle makes a container's bundle; change may be nil.
func (r *rig) bundle(t *testing.T, id string, change func(*specs.Spec)) sandbox.ContainerOptions {
	t.Helper()
	return sandbox.ContainerOptions{ID: id, Bundle: r.Bundle(t, id, change), Stdio: sandbox.Stdio{Stdout: true}}
}

// started boots the sandbox and starts a container.
func (r *rig) started(t *testing.T) *sandbox.Container {
	t.Helper()
	if err := r.Boot(t.Context(), sandbox.BootOptions{}); err != nil {
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
	{"too sandboxtest.Long an answer", func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
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
				boot, create := sandboxtest.Long, sandboxtest.Long
				if f.reason == "did not answer" {
					switch method {
					case "Details", "SetupSandbox":
						boot = sandboxtest.Short
					case "CreateContainer", "StartProcess":
						create = sandboxtest.Short
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
			sandboxtest.CheckReason(t, err.Error(), reason)
		}
		return err != nil
	}
	err := sandboxtest.Within(t, "Boot", func() error { return r.Boot(t.Context(), sandbox.BootOptions{Hostname: "h"}) })
	if failed("Boot", err, "Details", "SetupSandbox") {
		return
	}
	var c *sandbox.Container
	o := r.bundle(t, "c", nil)
	err = sandboxtest.Within(t, "Create", func() (err error) { c, err = r.Create(t.Context(), o); return err })
	if failed("Create", err, "CreateContainer") {
		if _, err := r.Container("c"); !errors.Is(err, sandbox.ErrNotFound) {
			t.Errorf("container that could not be created is still there: %v", err)
		}
		return
	}
	p := c.Init()
	err = sandboxtest.Within(t, "Start", func() error { _, err := p.Start(t.Context()); return err })
	// The wait is asked for with the start, and its fault may come first.
	if err != nil && method == "WaitProcess" {
		sandboxtest.CheckReason(t, err.Error(), reason)
		return
	}
	if failed("Start", err, "StartProcess") {
		sandboxtest.Within(t, "end of a process that could not be started", func() error { <-p.Done(); return nil })
		sandboxtest.CheckReason(t, p.Exit().Reason, reason)
		return
	}
	if method != "WaitProcess" {
		r.guest.Exit(7, time.Now())
	} else if reason == "did not answer" {
		return // a process may run for ever; Close ends it
	}
	sandboxtest.Within(t, "end of the process", func() error { <-p.Done(); return nil })
	e := p.Exit()
	switch {
	case method == "WaitProcess" && reason != "":
		if e.Code == 0 {
			t.Errorf("exit %+v: it counts as success", e)
		}
		sandboxtest.CheckReason(t, e.Reason, reason)
	case method == "WaitProcess":
		if e.Code != 3 {
			t.Errorf("exit %+v, want that which came first", e)
		}
	case e.Code != 7 || e.Reason != "":
		t.Errorf("exit %+v, want 7", e)
	}
	// Delete succeeds whatever the guest says.
	err = sandboxtest.Within(t, "Delete", func() error {
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
		{"greets with half a word", func(m *sandboxtest.Machine) { _, _ = m.Port.Write(hello(3)[:5]); <-m.Done() }, "did not answer"},
		{"greets with half a word and hangs up", func(m *sandboxtest.Machine) { _, _ = m.Port.Write(hello(3)[:5]); _ = m.Port.Close() }, "link"},
		{"greets with garbage", func(m *sandboxtest.Machine) { _, _ = io.CopyN(m.Port, rand.Reader, 1<<20); <-m.Done() }, "link"},
		{"greets with a nasty text", func(m *sandboxtest.Machine) { _, _ = m.Port.Write([]byte(nasty)); <-m.Done() }, "link"},
		{"speaks another version", func(m *sandboxtest.Machine) { _, _ = m.Port.Write(hello(77)); <-m.Done() }, "version"},
		{"greets and is silent", func(m *sandboxtest.Machine) { _, _ = m.Port.Write(hello(3)); <-m.Done() }, "did not answer"},
		{"greets and hangs up", func(m *sandboxtest.Machine) { _, _ = m.Port.Write(hello(3)); _ = m.Port.Close() }, "link"},
		{"greets and dies", func(m *sandboxtest.Machine) { _, _ = m.Port.Write(hello(3)); m.End(sandboxtest.ErrKilled) }, sandboxtest.ErrKilled.Error()},
		{"greets and floods", func(m *sandboxtest.Machine) { _, _ = m.Port.Write(hello(3)); _, _ = io.Copy(m.Port, rand.Reader) }, "link"},
		{"greets and opens streams itself", func(m *sandboxtest.Machine) {
			_, _ = m.Port.Write(append(hello(3), 1, 0, 0, 1, 0, 0, 0, 1, 1))
			<-m.Done()
		}, "link"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			timeout := sandboxtest.Long
			if tt.reason == "did not answer" {
				timeout = sandboxtest.Short
			}
			r := newRig(t, timeout, sandboxtest.Long, tt.serve)
			err := sandboxtest.Within(t, "Boot", func() error { return r.Boot(t.Context(), sandbox.BootOptions{}) })
			if err == nil {
				t.Fatal("Boot: no error")
			}
			t.Log(err)
			sandboxtest.CheckReason(t, err.Error(), tt.reason)
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
			r := newRig(t, sandboxtest.Long, sandboxtest.Long, func(m *sandboxtest.Machine) {
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
			err := sandboxtest.Within(t, "a life", func() error {
				if err := r.Boot(t.Context(), sandbox.BootOptions{}); err != nil {
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
			sandboxtest.CheckReason(t, err.Error(), sandboxtest.ErrKilled.Error())
		})
	}
}

// TestCloseAtAnyTime closes the sandbox while it is being started.
func TestCloseAtAnyTime(t *testing.T) {
	for i := range 40 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			r := newGuestRig(t, sandboxtest.Long, sandboxtest.Long, nil)
			ended := make(chan error, 1)
			o := r.bundle(t, "c", nil)
			go func() {
				ended <- func() error {
					if err := r.Boot(t.Context(), sandbox.BootOptions{}); err != nil {
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
			if err := sandboxtest.Within(t, "Close", func() error { return r.Close(t.Context()) }); err != nil {
				t.Errorf("Close: %v", err)
			}
			err := sandboxtest.Within(t, "a life", func() error { return <-ended })
			if err != nil {
				sandboxtest.CheckReason(t, err.Error(), "ended")
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
			r := newGuestRig(t, sandboxtest.Long, sandboxtest.Long, map[string]sandboxtest.Fault{"WaitProcess": func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Reply(tt.resp) }})
			c := r.started(t)
			sandboxtest.Within(t, "end of the process", func() error { <-c.Init().Done(); return nil })
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
	r := newGuestRig(t, sandboxtest.Long, sandboxtest.Long, nil)
	r.guest.Stdio = func(s link.Stream, _ link.Header) {
		defer s.Close()
		line := []byte(strings.Repeat("y\n", 8<<10))
		for {
			if _, err := s.Write(line); err != nil {
				return
			}
		}
	}
	if err := r.Boot(t.Context(), sandbox.BootOptions{}); err != nil {
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
	r := newGuestRig(t, sandboxtest.Long, sandboxtest.Long, nil)
	r.guest.Stdio = func(s link.Stream, _ link.Header) { _, _ = io.Copy(io.Discard, s) }
	c := r.started(t)
	out, err := c.Init().OpenStdio(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, out); read <- err }()
	r.guest.Exit(0, time.Now())
	sandboxtest.Within(t, "end of the process", func() error { <-c.Init().Done(); return nil })
	r.close(t)
	sandboxtest.Within(t, "reader", func() error { <-read; return nil })
}

// TestHooksAfterDeath: hooks must run, or be told not to have run, when there
// is no machine any more.
//
// It runs alone, since the tests share their process and thus a cgroup: another
// sandbox that ends would kill the hook.
func TestHooksAfterDeath(t *testing.T) {
	r := newGuestRig(t, sandboxtest.Long, sandboxtest.Long, nil)
	mark := filepath.Join(r.Rig.Dir, "hook")
	if err := r.Boot(t.Context(), sandbox.BootOptions{}); err != nil {
		t.Fatal(err)
	}
	c, err := r.Create(t.Context(), r.bundle(t, "c", func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >" + mark}}}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	r.Machine.End(sandboxtest.ErrKilled)
	<-r.Dead()
	if err := sandboxtest.Within(t, "Delete", func() error { return c.Delete(t.Context()) }); err != nil {
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
	r := newGuestRig(t, sandboxtest.Long, sandboxtest.Long, map[string]sandboxtest.Fault{
		"CreateExec": stall, "SignalProcess": stall, "PauseContainer": stall, "ResumeContainer": stall,
		"StatsContainer": stall, "ListProcesses": stall, "UpdateContainer": stall, "ResizeTerminal": stall, "DeleteContainer": stall,
	})
	c := r.started(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	for name, f := range map[string]func() error{
		"exec": func() error {
			_, err := c.Exec(ctx, "e", &specs.Process{Args: []string{"x"}, Cwd: "/"}, sandbox.Stdio{})
			return err
		},
		"signal": func() error { return c.Init().Signal(ctx, 15, true) },
		"pause":  func() error { return c.Pause(ctx) },
		"stats":  func() error { _, err := c.Stats(ctx); return err },
		"ps":     func() error { _, err := c.Processes(ctx); return err },
		"update": func() error { return c.Update(ctx, &specs.LinuxResources{}) },
		"resize": func() error { return c.Init().Resize(ctx, 1, 1) },
	} {
		err := sandboxtest.Within(t, name, f)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		sandboxtest.CheckReason(t, err.Error(), "did not answer")
	}
	if st, err := report.Read(r.Options.Config.Runtime.StateDir, r.ID()); err != nil || !st.Alive || len(st.Containers) != 1 {
		t.Errorf("state: %+v, %v", st, err)
	}
}

// TestKillNeedsNoGuest: SIGKILL ends a container whose guest does not answer, or
// says that it obeys and does not.
func TestKillNeedsNoGuest(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]sandboxtest.Fault{
		"stalls": func(*sandboxtest.Guest, *sandboxtest.Call) {},
		"lies":   func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Reply(&agentv1.SignalProcessResponse{}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newGuestRig(t, sandboxtest.Long, sandboxtest.Long, map[string]sandboxtest.Fault{"SignalProcess": fault})
			c := r.started(t)
			if err := sandboxtest.Within(t, "Signal", func() error { return c.Init().Signal(t.Context(), 9, false) }); err != nil {
				t.Error(err)
			}
			<-c.Init().Done()
			sandboxtest.CheckReason(t, c.Init().Exit().Reason, "does not obey SIGKILL")
		})
	}
}

// TestListsAreFitToBePrinted has a guest with terminal escapes in what it lists.
func TestListsAreFitToBePrinted(t *testing.T) {
	t.Parallel()
	r := newGuestRig(t, sandboxtest.Long, sandboxtest.Long, map[string]sandboxtest.Fault{
		"ListProcesses": func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
			c.Reply(&agentv1.ListProcessesResponse{Processes: []*agentv1.Process{
				{Pid: 1, Exec: nasty[:100], State: nasty[:100], Command: nasty}, {Pid: 2, Exec: "e", State: "S", Command: "sleep 1"},
			}})
		},
		"StatsContainer": func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
			c.Reply(&agentv1.StatsContainerResponse{Network: []*agentv1.NetworkStats{{Name: nasty}}})
		},
	})
	c := r.started(t)
	if _, err := c.Exec(t.Context(), "e", &specs.Process{Args: []string{"x"}, Cwd: "/"}, sandbox.Stdio{}); err != nil {
		t.Fatal(err)
	}
	ps, err := c.Processes(t.Context())
	if err != nil || len(ps) != 2 {
		t.Fatalf("Processes: %d of them, %v", len(ps), err)
	}
	sandboxtest.CheckReason(t, ps[0].GetCommand(), "you see me")
	sandboxtest.CheckReason(t, ps[0].GetState(), "")
	if ps[0].GetExec() != "" || ps[1].GetExec() != "e" || ps[1].GetCommand() != "sleep 1" || ps[1].GetState() != "S" {
		t.Errorf("got %v", ps)
	}
	stats, err := c.Stats(t.Context())
	if err != nil || len(stats.GetNetwork()) != 1 {
		t.Fatalf("Stats: %v, %v", stats, err)
	}
	sandboxtest.CheckReason(t, stats.GetNetwork()[0].GetName(), "")
}

// TestLongStats: a guest's answer full of empty entries does not become as many
// on the host.
func TestLongStats(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ told, want int }{{3, 3}, {256, 256}, {257, 256}, {1 << 18, 256}} {
		t.Run(strconv.Itoa(tt.told), func(t *testing.T) {
			t.Parallel()
			r := newGuestRig(t, sandboxtest.Long, sandboxtest.Long, map[string]sandboxtest.Fault{
				"StatsContainer": func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
					answer := &agentv1.StatsContainerResponse{}
					for range tt.told {
						answer.Io = append(answer.Io, &agentv1.IOStats{})
						answer.Network = append(answer.Network, &agentv1.NetworkStats{})
					}
					c.Reply(answer)
				},
			})
			stats, err := r.started(t).Stats(t.Context())
			if err != nil || len(stats.GetIo()) != tt.want || len(stats.GetNetwork()) != tt.want {
				t.Errorf("%d disks, %d interfaces, %v; want %d", len(stats.GetIo()), len(stats.GetNetwork()), err, tt.want)
			}
		})
	}
}

// TestNothingIsWrittenElsewhere: ids that the guest gets back never become
// paths, so a life in which every text is a path leaves all else as it was.
func TestNothingIsWrittenElsewhere(t *testing.T) {
	t.Parallel()
	path := "../../../" + t.Name()
	say := func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Fail(codes.Internal, path) }
	r := newGuestRig(t, sandboxtest.Long, sandboxtest.Long, map[string]sandboxtest.Fault{
		"Details": func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
			c.Reply(&agentv1.DetailsResponse{Version: path, KernelRelease: path})
		},
		"CreateExec":      say,
		"PauseContainer":  say,
		"DeleteContainer": say,
	})
	c := r.started(t)
	before := tree(t, r.Rig.Dir, r.Sandbox.Dir())
	_, _ = c.Exec(t.Context(), "e", &specs.Process{Args: []string{"x"}, Cwd: "/"}, sandbox.Stdio{})
	_ = c.Pause(t.Context())
	r.guest.Exit(0, time.Now())
	sandboxtest.Within(t, "end of the process", func() error { <-c.Init().Done(); return nil })
	for f := range tree(t, r.Rig.Dir, r.Sandbox.Dir()) {
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
