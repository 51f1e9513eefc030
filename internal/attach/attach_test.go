package attach

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/sandboxtest"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

func TestMain(m *testing.M) { os.Exit(sandboxtest.Run(m)) }

// newSession returns a session for an exec in a container that runs.
func newSession(t *testing.T, g *sandboxtest.Guest) *Session {
	t.Helper()
	rig := sandboxtest.NewRig(t, g.Serve)
	sb, err := sandbox.New(rig.Options)
	if err != nil {
		t.Fatal(err)
	}
	ownerR, ownerW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { // the clean-up waits for it
		ended <- proxy.Serve(context.Background(), proxy.Options{Sandbox: sb, Log: rig.Options.Log, Owner: ownerR, Ready: func() { close(ready) }})
	}()
	<-ready
	c, err := proxy.Dial(t.Context(), rig.Options.Config.Runtime.StateDir, rig.Options.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = ownerW.Close()
		if err := sandboxtest.Within(t, "the proxy", func() error { return <-ended }); err != nil {
			t.Error(err)
		}
		_ = c.Close()
	})
	if _, err := c.Boot(t.Context(), &proxyv1.BootRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), &proxyv1.CreateRequest{Id: "c", Bundle: rig.Bundle(t, "c", nil)}); err != nil {
		t.Fatal(err)
	}
	s := &Session{Client: c, Container: "c"}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.Exec = "e"
	return s
}

// run runs the session's exec.
func run(t *testing.T, s *Session) (resp *proxyv1.WaitResponse, err error) {
	t.Helper()
	_ = sandboxtest.Within(t, "RunExec", func() error {
		resp, err = s.RunExec(t.Context(), &specs.Process{Args: []string{"x"}, Cwd: "/"}, func() {})
		return nil
	})
	return resp, err
}

// input is a file that has the text and ends.
func input(t *testing.T, text string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteString(text); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// TestRunExec has a process that reads its input to the end, and says more after
// its own end.
func TestRunExec(t *testing.T) {
	read := make(chan string, 1)
	g := &sandboxtest.Guest{}
	g.Stdio = func(s link.Stream, h link.Header) {
		defer s.Close()
		switch h.FD {
		case 0:
			b, _ := io.ReadAll(s)
			read <- string(b)
		case 1:
			text := <-read
			g.Exit(7, time.Now())
			_, _ = io.WriteString(s, "got "+text)
		case 2:
			_, _ = io.WriteString(s, "complaint")
		}
	}
	s := newSession(t, g)
	var out, errOut bytes.Buffer
	s.Stdin, s.Stdout, s.Stderr = input(t, "hello"), &out, &errOut
	resp, err := run(t, s)
	if err != nil || resp.GetExitCode() != 7 || out.String() != "got hello" || errOut.String() != "complaint" {
		t.Errorf("%v, %v; output %q, errors %q", resp, err, out.String(), errOut.String())
	}
}

// TestMissingCommand leaves nothing of the exec.
func TestMissingCommand(t *testing.T) {
	var starts, deletes atomic.Int32
	s := newSession(t, &sandboxtest.Guest{Faults: map[string]sandboxtest.Fault{
		"StartProcess": func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
			if starts.Add(1) == 1 { // the container's own
				c.Reply(&agentv1.StartProcessResponse{Pid: 1})
				return
			}
			c.Fail(codes.NotFound, "x: not in PATH")
		},
		"DeleteProcess": func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
			deletes.Add(1)
			c.Reply(&agentv1.DeleteProcessResponse{})
		},
	}})
	s.Stdout, s.Stderr = io.Discard, io.Discard
	_, err := run(t, s)
	if !errors.Is(err, sandbox.ErrCommandNotFound) || strings.Contains(err.Error(), "\n") || deletes.Load() != 1 {
		t.Errorf("%v, deleted %d times; want one line that the command is missing", err, deletes.Load())
	}
}

// closed is an output that nobody reads any more.
type closed struct{}

func (closed) Write([]byte) (int, error) { return 0, unix.EPIPE }

// TestOutputClosed tells the process, by the end of its stream, and the caller.
func TestOutputClosed(t *testing.T) {
	told := make(chan struct{})
	s := newSession(t, &sandboxtest.Guest{Stdio: func(s link.Stream, _ link.Header) {
		defer close(told)
		defer s.Close()
		for {
			if _, err := io.WriteString(s, "y\n"); err != nil {
				return
			}
		}
	}})
	s.Stdout, s.TTY = closed{}, true
	if _, err := run(t, s); !errors.Is(err, ErrOutputClosed) {
		t.Errorf("%v", err)
	}
	<-told
}

// TestLostProxy: the owner is gone, and not the process to blame.
func TestLostProxy(t *testing.T) {
	var s *Session
	s = newSession(t, &sandboxtest.Guest{Stdio: func(st link.Stream, _ link.Header) {
		defer st.Close()
		_ = s.Client.Close()
	}})
	s.Stdout, s.TTY = io.Discard, true
	if resp, err := run(t, s); err == nil {
		t.Errorf("no error, but %v", resp)
	}
}

// sendUntil sends a signal to this process, which catches it, again and again
// until done: whoever is to pass it on may not listen yet.
func sendUntil(t *testing.T, sig unix.Signal, done <-chan struct{}) {
	t.Helper()
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, sig)
	defer signal.Stop(caught)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := unix.Kill(unix.Getpid(), sig); err != nil {
			t.Error(err)
		}
		select {
		case <-tick.C:
		case <-done:
			return
		}
	}
}

// TestSignals passes one on, which ends the process.
func TestSignals(t *testing.T) {
	signalled := make(chan struct{})
	var once atomic.Bool
	s := newSession(t, &sandboxtest.Guest{Faults: map[string]sandboxtest.Fault{
		"SignalProcess": func(g *sandboxtest.Guest, c *sandboxtest.Call) {
			c.Reply(&agentv1.SignalProcessResponse{})
			g.Exit(138, time.Now())
			if once.CompareAndSwap(false, true) {
				close(signalled)
			}
		},
	}})
	s.Stdout, s.TTY, s.Signals = io.Discard, true, true
	sent := make(chan struct{})
	go func() { defer close(sent); sendUntil(t, unix.SIGUSR1, signalled) }() // ends with signalled
	if resp, err := run(t, s); err != nil || resp.GetExitCode() != 138 {
		t.Errorf("%v, %v", resp, err)
	}
	<-sent
}

// TestImpatience: a process that ignores SIGTERM does not hold the caller.
func TestImpatience(t *testing.T) {
	s := newSession(t, &sandboxtest.Guest{
		Faults: map[string]sandboxtest.Fault{
			"SignalProcess": func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Reply(&agentv1.SignalProcessResponse{}) },
		},
		Stdio: func(s link.Stream, _ link.Header) {
			_, _ = io.Copy(io.Discard, s) // until the caller goes
			_ = s.Close()
		},
	})
	s.Stdout, s.TTY, s.Signals = io.Discard, true, true
	returned, sent := make(chan struct{}), make(chan struct{})
	go func() { defer close(sent); sendUntil(t, unix.SIGTERM, returned) }() // ends with returned
	_, err := run(t, s)
	close(returned)
	if err == nil {
		t.Error("no error")
	}
	<-sent
}
