package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/internal/sandbox/sandboxtest"
	"google.golang.org/grpc/codes"
)

func TestMain(m *testing.M) { os.Exit(sandboxtest.Run(m)) }

// rig is a proxy at work, in this process, for a sandbox with a fake machine.
type rig struct {
	*sandboxtest.Rig
	guest   *sandboxtest.Guest
	sandbox *sandbox.Sandbox
	owner   *os.File // the caller's end
	client  *Client
	// ended gets what Serve returns.
	ended chan error
}

// newRig starts a proxy. At the end of the test its owner goes, if it has not.
func newRig(t *testing.T, g *sandboxtest.Guest, network NetworkSetup) *rig {
	t.Helper()
	r := &rig{Rig: sandboxtest.NewRig(t, g.Serve), guest: g, ended: make(chan error, 1)}
	var err error
	if r.sandbox, err = sandbox.New(r.Options); err != nil {
		t.Fatal(err)
	}
	ownerR, ownerW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.owner = ownerW
	ready := make(chan struct{})
	go func() { // end waits for it
		r.ended <- Serve(context.Background(), Options{
			Sandbox: r.sandbox, Log: r.Options.Log, Owner: ownerR, Network: network, Ready: func() { close(ready) },
		})
	}()
	<-ready
	if r.client, err = Dial(t.Context(), r.Options.Config.Runtime.StateDir, r.Options.ID); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.owner.Close()
		r.end(t)
		_ = r.client.Close()
	})
	return r
}

// end waits for the proxy to end.
func (r *rig) end(t *testing.T) {
	t.Helper()
	err := sandboxtest.Within(t, "Serve", func() error {
		err := <-r.ended
		r.ended <- nil // for a further caller
		return err
	})
	if err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func (r *rig) boot(t *testing.T, req *proxyv1.BootRequest) {
	t.Helper()
	if _, err := r.client.Boot(t.Context(), req); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) create(t *testing.T, req *proxyv1.CreateRequest) {
	t.Helper()
	req.Id, req.Bundle = "c", r.Bundle(t, "c", nil)
	if _, err := r.client.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) start(t *testing.T) {
	t.Helper()
	if _, err := r.client.Start(t.Context(), &proxyv1.StartRequest{Container: "c"}); err != nil {
		t.Fatal(err)
	}
}

// TestOwner: the sandbox ends with the caller that spawned its proxy, but not
// with one that has left it to itself.
func TestOwner(t *testing.T) {
	t.Run("goes", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, &sandboxtest.Guest{}, nil)
		r.boot(t, &proxyv1.BootRequest{})
		r.create(t, &proxyv1.CreateRequest{})
		r.start(t)
		_ = r.owner.Close()
		r.end(t)
	})
	t.Run("goes before boot", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, &sandboxtest.Guest{}, nil)
		_ = r.owner.Close()
		r.end(t)
	})
	t.Run("goes during boot", func(t *testing.T) {
		t.Parallel()
		asked := make(chan struct{})
		r := newRig(t, &sandboxtest.Guest{Faults: map[string]sandboxtest.Fault{
			"SetupSandbox": func(*sandboxtest.Guest, *sandboxtest.Call) { close(asked) },
		}}, nil)
		booted := make(chan error, 1)
		go func() { _, err := r.client.Boot(t.Context(), &proxyv1.BootRequest{}); booted <- err }()
		<-asked
		_ = r.owner.Close()
		r.end(t)
		if err := <-booted; err == nil {
			t.Error("Boot: no error")
		}
	})
	t.Run("leaves it to itself", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, &sandboxtest.Guest{}, nil)
		r.boot(t, &proxyv1.BootRequest{})
		r.client.owner = r.owner
		if err := r.client.Disown(); err != nil {
			t.Fatal(err)
		}
		_ = r.owner.Close()
		// Whoever comes later finds it alive.
		c, err := Dial(t.Context(), r.Options.Config.Runtime.StateDir, r.Options.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Trace(t.Context(), &proxyv1.TraceRequest{}); err != nil {
			t.Error(err)
		}
		if err := c.End(t.Context()); err != nil {
			t.Errorf("End: %v", err)
		}
		r.end(t)
	})
}

// TestOwnerGoesWhileTheNetworkIsMade: what is made for the sandbox is released
// after it was made, not before.
func TestOwnerGoesWhileTheNetworkIsMade(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var events []string
	event := func(e string) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e)
	}
	began := make(chan struct{})
	r := newRig(t, &sandboxtest.Guest{}, func(ctx context.Context, s *sandbox.Sandbox, _ *proxyv1.CNI) (NetworkResult, error) {
		err := s.Own(cleanup.Record{Kind: cleanup.KindCNI, Name: "net"}, func(context.Context, cleanup.Record) error {
			event("released")
			return nil
		})
		close(began)
		<-ctx.Done()
		event("made")
		return NetworkResult{}, errors.Join(err, ctx.Err())
	})
	booted := make(chan error, 1)
	go func() {
		_, err := r.client.Boot(t.Context(), &proxyv1.BootRequest{Cni: &proxyv1.CNI{Network: "net"}})
		booted <- err
	}()
	<-began
	_ = r.owner.Close()
	r.end(t)
	if err := <-booted; err == nil {
		t.Error("Boot: no error")
	}
	if got := strings.Join(events, ", "); got != "made, released" {
		t.Errorf("got %s; want made, released", got)
	}
}

// echo is a guest whose processes send back what they are sent, and end then.
func echo() *sandboxtest.Guest {
	g := &sandboxtest.Guest{}
	var mu sync.Mutex
	var out link.Stream
	var in []byte
	ended := false
	flush := func() { // mu is held
		if out == nil || !ended {
			return
		}
		_, _ = out.Write(in)
		_ = out.CloseWrite()
		g.Exit(3, time.Now())
	}
	g.Stdio = func(s link.Stream, h link.Header) {
		switch h.FD {
		case 0:
			b, _ := io.ReadAll(s)
			_ = s.Close()
			mu.Lock()
			defer mu.Unlock()
			in, ended = b, true
			flush()
		case 1:
			mu.Lock()
			out = s
			flush()
			mu.Unlock()
			_, _ = io.Copy(io.Discard, s)
			_ = s.Close()
		default:
			_ = s.Close()
		}
	}
	return g
}

// TestStdio: every byte gets through both ways, with the ends of the streams,
// though the process ends at once and its sandbox after it.
func TestStdio(t *testing.T) {
	t.Parallel()
	r := newRig(t, echo(), nil)
	r.boot(t, &proxyv1.BootRequest{})
	r.create(t, &proxyv1.CreateRequest{Stdin: true, Stdout: true})
	in, err := r.client.OpenStdio(t.Context(), "c", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := r.client.OpenStdio(t.Context(), "c", "", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := r.client.OpenStdio(t.Context(), "c", "", 2); err == nil {
		t.Error("a stream that was not asked for can be opened")
	}
	r.start(t)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 200<<10/16)
	if _, err := in.Write(sent); err != nil {
		t.Fatal(err)
	}
	if err := in.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	resp, err := r.client.Wait(t.Context(), &proxyv1.WaitRequest{Container: "c"})
	if err != nil || resp.GetExitCode() != 3 {
		t.Errorf("Wait: %v, %v; want exit code 3", resp, err)
	}
	got, err := io.ReadAll(out)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("got %d bytes, %v; want the %d that were sent", len(got), err, len(sent))
	}
}

// TestDetached: without a caller, the log and the exit are written, and the
// sandbox ends by itself.
func TestDetached(t *testing.T) {
	t.Parallel()
	g := &sandboxtest.Guest{}
	g.Stdio = func(s link.Stream, h link.Header) {
		_, _ = io.WriteString(s, map[uint8]string{1: "to stdout\n", 2: "to stderr\n"}[h.FD])
		g.Exit(5, time.Now())
		_ = s.Close()
	}
	r := newRig(t, g, nil)
	log, exit := filepath.Join(r.Dir, "log"), filepath.Join(r.Dir, "exit")
	r.boot(t, &proxyv1.BootRequest{EndWithFirstContainer: true})
	r.create(t, &proxyv1.CreateRequest{Stdout: true, Stderr: true, LogPath: log, ExitPath: exit})
	r.client.owner = r.owner
	if err := r.client.Disown(); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	r.end(t)
	text, err := os.ReadFile(log)
	if err != nil || !strings.Contains(string(text), "to stdout") || !strings.Contains(string(text), "to stderr") {
		t.Errorf("log: %s, %v", text, err)
	}
	var e report.Exit
	b, err := os.ReadFile(exit)
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err != nil || e.Code != 5 {
		t.Errorf("exit: %s, %v; want code 5", b, err)
	}
}

// TestClientsThatHang: a client that neither reads nor closes does not hold up
// the end of the sandbox, and the guest's flood does not either.
func TestClientsThatHang(t *testing.T) {
	t.Parallel()
	g := &sandboxtest.Guest{Stdio: func(s link.Stream, _ link.Header) {
		defer s.Close()
		for line := []byte(strings.Repeat("y\n", 8<<10)); ; {
			if _, err := s.Write(line); err != nil {
				return
			}
		}
	}}
	r := newRig(t, g, nil)
	r.boot(t, &proxyv1.BootRequest{})
	r.create(t, &proxyv1.CreateRequest{Stdin: true, Stdout: true})
	for fd := range uint8(2) {
		s, err := r.client.OpenStdio(t.Context(), "c", "", fd)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
	r.start(t)
	waited := make(chan error, 1)
	go func() {
		_, err := r.client.Wait(t.Context(), &proxyv1.WaitRequest{Container: "c"})
		waited <- err
	}()
	if err := r.client.End(t.Context()); err != nil {
		t.Errorf("End: %v", err)
	}
	r.end(t)
	// The question may come after the container's end, and the answer after
	// that of the connection.
	err := sandboxtest.Within(t, "Wait", func() error { return <-waited })
	if err != nil && !errors.Is(err, ttrpc.ErrClosed) && !errors.Is(Explain(err), sandbox.ErrState) {
		t.Errorf("Wait: %v", err)
	}
}

// TestMachineDies: a caller that waits gets the exit and the reason.
func TestMachineDies(t *testing.T) {
	t.Parallel()
	r := newRig(t, &sandboxtest.Guest{}, nil)
	r.boot(t, &proxyv1.BootRequest{})
	r.create(t, &proxyv1.CreateRequest{})
	r.start(t)
	r.Machine.End(sandboxtest.ErrKilled)
	resp, err := r.client.Wait(t.Context(), &proxyv1.WaitRequest{Container: "c"})
	if err != nil || resp.GetExitCode() != 255 {
		t.Errorf("Wait: %v, %v; want exit code 255", resp, err)
	}
	sandboxtest.CheckReason(t, resp.GetReason(), sandboxtest.ErrKilled.Error())
	_, err = r.client.Create(t.Context(), &proxyv1.CreateRequest{Id: "d", Bundle: r.Bundle(t, "d", nil)})
	if err = Explain(err); !errors.Is(err, sandbox.ErrDead) {
		t.Errorf("Create: %v, want ErrDead", err)
	}
	sandboxtest.CheckReason(t, err.Error(), sandboxtest.ErrKilled.Error())
}

// TestErrorsKeepTheirKind: across the socket a command line can tell errors
// apart, as it must for its exit code.
func TestErrorsKeepTheirKind(t *testing.T) {
	for _, tt := range []struct {
		name string
		code codes.Code
		want error
	}{
		{"command not found", codes.NotFound, sandbox.ErrCommandNotFound},
		{"command denied", codes.PermissionDenied, sandbox.ErrCommandDenied},
		{"invalid", codes.InvalidArgument, sandbox.ErrInvalid},
		{"exists", codes.AlreadyExists, sandbox.ErrExists},
		{"state", codes.FailedPrecondition, sandbox.ErrState},
		{"other", codes.Internal, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, &sandboxtest.Guest{Faults: map[string]sandboxtest.Fault{
				"StartProcess": func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Fail(tt.code, "you see me") },
			}}, nil)
			r.boot(t, &proxyv1.BootRequest{})
			r.create(t, &proxyv1.CreateRequest{})
			_, err := r.client.Start(t.Context(), &proxyv1.StartRequest{Container: "c"})
			err = Explain(err)
			if err == nil {
				t.Fatal("no error")
			}
			sandboxtest.CheckReason(t, err.Error(), "you see me")
			for _, kind := range []error{
				sandbox.ErrCommandNotFound, sandbox.ErrCommandDenied, sandbox.ErrInvalid, sandbox.ErrExists, sandbox.ErrState, sandbox.ErrDead,
			} {
				if got, want := errors.Is(err, kind), errors.Is(tt.want, kind); got != want {
					t.Errorf("errors.Is(%v, %v) = %v", err, kind, got)
				}
			}
		})
	}
}

// TestRequests are those that are refused, with errors that say so.
func TestRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t, &sandboxtest.Guest{}, nil)
	create := func() error {
		_, err := r.client.Create(t.Context(), &proxyv1.CreateRequest{Id: "c", Bundle: r.Bundle(t, "c", nil)})
		return err
	}
	for _, tt := range []struct {
		name string
		call func() error
		want string
	}{
		{"create before boot", create, "not booted"},
		{"bad resources", func() error {
			_, err := r.client.Boot(t.Context(), &proxyv1.BootRequest{Resources: []byte("{")})
			return err
		}, "resources"},
		{"boot after a boot that failed", func() error {
			_, err := r.client.Boot(t.Context(), &proxyv1.BootRequest{})
			return err
		}, "booted already"},
		{"unknown container", func() error {
			_, err := r.client.Wait(t.Context(), &proxyv1.WaitRequest{Container: "../x"})
			return err
		}, "not found"},
	} {
		err := Explain(tt.call())
		if err == nil {
			t.Errorf("%s: no error", tt.name)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q in it", tt.name, err, tt.want)
		}
	}
}

func TestDialNobody(t *testing.T) {
	if _, err := Dial(t.Context(), t.TempDir(), "nobody"); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	if _, err := Dial(t.Context(), t.TempDir(), "../x"); !errors.Is(err, sandbox.ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
}

// TestExec: an exec has its own life, streams and exit.
func TestExec(t *testing.T) {
	t.Parallel()
	r := newRig(t, &sandboxtest.Guest{}, nil)
	r.boot(t, &proxyv1.BootRequest{})
	r.create(t, &proxyv1.CreateRequest{})
	r.start(t)
	process, err := json.Marshal(specs.Process{Args: []string{"x"}, Cwd: "/"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Exec(t.Context(), &proxyv1.ExecRequest{Container: "c", Exec: "e", Process: process}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Start(t.Context(), &proxyv1.StartRequest{Container: "c", Exec: "e"}); err != nil {
		t.Fatal(err)
	}
	r.guest.Exit(9, time.Now())
	resp, err := r.client.Wait(t.Context(), &proxyv1.WaitRequest{Container: "c", Exec: "e"})
	if err != nil || resp.GetExitCode() != 9 {
		t.Errorf("Wait: %v, %v; want exit code 9", resp, err)
	}
	if _, err := r.client.Delete(t.Context(), &proxyv1.DeleteRequest{Container: "c", Exec: "e"}); err != nil {
		t.Error(err)
	}
	if _, err := r.client.Wait(t.Context(), &proxyv1.WaitRequest{Container: "c", Exec: "e"}); err == nil {
		t.Error("a deleted exec can be waited for")
	}
}
