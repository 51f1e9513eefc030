package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	events "github.com/containerd/containerd/api/events"
	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	forward "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/sandboxtest"
	"github.com/seed-efd44b36/kata/internal/shim/controller"
	"github.com/seed-efd44b36/kata/internal/shim/publisher"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

func TestMain(m *testing.M) { os.Exit(sandboxtest.Run(m)) }

// containerd is what takes a shim's events.
type containerd struct {
	mu  sync.Mutex
	got []string // guarded by mu
}

// Forward implements containerd's service.
func (c *containerd) Forward(_ context.Context, r *forward.ForwardRequest) (*emptypb.Empty, error) {
	e := r.GetEnvelope()
	text := e.GetTopic()
	for _, m := range []proto.Message{&events.TaskExit{}, &events.TaskExecStarted{}, &events.TaskStart{}, &events.TaskOOM{}} {
		if e.GetEvent().GetTypeUrl() != string(m.ProtoReflect().Descriptor().FullName()) {
			continue
		}
		if err := proto.Unmarshal(e.GetEvent().GetValue(), m); err != nil {
			return nil, err
		}
		if exit, ok := m.(*events.TaskExit); ok {
			text += " " + exit.GetID()
		}
	}
	c.mu.Lock()
	c.got = append(c.got, text)
	c.mu.Unlock()
	return &emptypb.Empty{}, nil
}

func (c *containerd) events() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

// served is a shim that serves, and its containerd.
type served struct {
	*sandboxtest.Rig

	guest      *sandboxtest.Guest
	containerd *containerd
	client     task.TTRPCTaskService
	old        taskv2.TTRPCTaskService
	opened     atomic.Bool // it has begun to make a sandbox
	sandboxes  api.TTRPCSandboxService
	conn       *ttrpc.Client
	ended      chan struct{} // closed when the shim has ended
	stop       func()
	service    *service
}

func listenAt(t *testing.T, path string) net.Listener {
	t.Helper()
	var conf net.ListenConfig
	l, err := conf.Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serveShim starts a shim whose sandbox is made for container "c".
func serveShim(t *testing.T, faults map[string]sandboxtest.Fault) *served {
	t.Helper()
	s := &served{guest: &sandboxtest.Guest{Faults: faults}, containerd: &containerd{}, ended: make(chan struct{})}
	s.Rig = sandboxtest.NewRig(t, s.guest.Serve)
	// The rig looks into it at the end, if there was a sandbox or not.
	if err := os.MkdirAll(s.Options.Config.Runtime.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	l := listenAt(t, filepath.Join(s.Dir, "events"))
	rpc, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	forward.RegisterTTRPCEventsService(rpc, s.containerd)
	var serving sync.WaitGroup
	serving.Go(func() { _ = rpc.Serve(context.Background(), l) })
	mounts, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	svc := &service{
		namespace: "test", id: "c", mounts: mounts, log: log, stop: stop, tasks: map[string]*ctr{},
		events: publisher.New(filepath.Join(s.Dir, "events"), "test", log),
		open: func(context.Context) (*sandbox.Sandbox, *slog.Logger, error) {
			s.opened.Store(true)
			sb, err := sandbox.New(s.Options)
			return sb, log, err
		},
	}
	svc.pod = controller.New("c", machine{svc})
	s.service = svc
	socket := listenAt(t, filepath.Join(s.Dir, "shim"))
	serving.Go(func() {
		defer close(s.ended)
		if err := svc.run(ctx, socket); err != nil {
			t.Errorf("the shim ended with %v", err)
		}
	})
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "unix", filepath.Join(s.Dir, "shim"))
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	s.client, s.old = task.NewTTRPCTaskClient(client), taskv2.NewTTRPCTaskClient(client)
	s.conn, s.sandboxes = client, api.NewTTRPCSandboxClient(client)
	t.Cleanup(func() {
		_ = client.Close()
		stop()
		<-s.ended
		_ = rpc.Close()
		_ = l.Close()
		serving.Wait()
		_ = mounts.Close()
		if !s.opened.Load() {
			_ = s.Options.HostMounts.Close()
		}
	})
	return s
}

func (s *served) create(t *testing.T, id string, change func(*specs.Spec)) error {
	t.Helper()
	_, err := s.client.Create(t.Context(), &task.CreateTaskRequest{ID: id, Bundle: s.Bundle(t, id, change)})
	return err
}

// started creates and starts a container.
func (s *served) started(t *testing.T, id string) {
	t.Helper()
	if err := s.create(t, id, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Start(t.Context(), &task.StartRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
}

func (s *served) status(t *testing.T, id, exec string) tasktypes.Status {
	t.Helper()
	r, err := s.client.State(t.Context(), &task.StateRequest{ID: id, ExecID: exec})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetStatus()
}

func (s *served) execProcess(t *testing.T, id, exec string) error {
	t.Helper()
	_, err := s.client.Exec(t.Context(), &task.ExecProcessRequest{
		ID: id, ExecID: exec, Spec: &anypb.Any{Value: []byte(`{"args":["sh"],"cwd":"/"}`)},
	})
	return err
}

// wait waits for the events to be those that are wanted.
func (s *served) wait(t *testing.T, want []string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		got := s.containerd.events()
		if cmp.Equal(want, got) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("events: -want +got\n%s", cmp.Diff(want, got))
		}
	}
}

// shutdown ends the shim. As for containerd, the answer may be overtaken by the
// end of the connection.
func (s *served) shutdown(t *testing.T) {
	t.Helper()
	if _, err := s.client.Shutdown(t.Context(), &task.ShutdownRequest{ID: "c"}); err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		t.Error(err)
	}
	_ = s.conn.Close()
	select {
	case <-s.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the shim does not end")
	}
}

func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("%s: %v (%v), want %v", what, err, got, want)
	}
}

// TestLife goes through the life of a container and an exec, and finds every
// event in its place.
func TestLife(t *testing.T) {
	t.Parallel()
	s := serveShim(t, nil)
	if err := s.create(t, "c", nil); err != nil {
		t.Fatal(err)
	}
	if got := s.status(t, "c", ""); got != tasktypes.Status_CREATED {
		t.Errorf("after Create it is %v", got)
	}
	wantCode(t, "exec before the start", s.execProcess(t, "c", "e"), codes.FailedPrecondition)
	if _, err := s.client.Start(t.Context(), &task.StartRequest{ID: "c"}); err != nil {
		t.Fatal(err)
	}
	_, err := s.client.Start(t.Context(), &task.StartRequest{ID: "c"})
	wantCode(t, "second start", err, codes.FailedPrecondition)
	if err := s.execProcess(t, "c", "e"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "second exec of that id", s.execProcess(t, "c", "e"), codes.AlreadyExists)
	if _, err := s.client.Start(t.Context(), &task.StartRequest{ID: "c", ExecID: "e"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Pause(t.Context(), &task.PauseRequest{ID: "c"}); err != nil {
		t.Error(err)
	}
	if got := s.status(t, "c", ""); got != tasktypes.Status_PAUSED {
		t.Errorf("after Pause it is %v", got)
	}
	if _, err := s.client.Resume(t.Context(), &task.ResumeRequest{ID: "c"}); err != nil {
		t.Error(err)
	}
	_, err = s.client.Delete(t.Context(), &task.DeleteRequest{ID: "c"})
	wantCode(t, "delete of a running container", err, codes.FailedPrecondition)
	_, err = s.client.Checkpoint(t.Context(), &task.CheckpointTaskRequest{ID: "c"})
	wantCode(t, "checkpoint", err, codes.Unimplemented)

	s.guest.Exit(7, time.Now())
	w, err := s.client.Wait(t.Context(), &task.WaitRequest{ID: "c"})
	if err != nil || w.GetExitStatus() != 7 {
		t.Errorf("Wait: %v, %v; want 7", w, err)
	}
	_, err = s.client.Kill(t.Context(), &task.KillRequest{ID: "c", Signal: 15})
	wantCode(t, "signal to what has ended", err, codes.NotFound)
	for _, exec := range []string{"e", ""} {
		r, err := s.client.Delete(t.Context(), &task.DeleteRequest{ID: "c", ExecID: exec})
		if err != nil || r.GetExitStatus() != 7 {
			t.Errorf("Delete %q: %v, %v; want 7", exec, r, err)
		}
	}
	_, err = s.client.State(t.Context(), &task.StateRequest{ID: "c"})
	wantCode(t, "state of what was deleted", err, codes.NotFound)
	s.wait(t, []string{
		"/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/paused", "/tasks/resumed",
		"/tasks/exit e", "/tasks/exit c", "/tasks/delete",
	})
	s.shutdown(t)
}

// TestExecOfNoCommand: that a command cannot be run is said when it is started,
// and the exec is deleted like any other.
func TestExecOfNoCommand(t *testing.T) {
	t.Parallel()
	s := serveShim(t, map[string]sandboxtest.Fault{"CreateExec": func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
		c.Fail(codes.NotFound, `exec "sh": executable file not found in $PATH`)
	}})
	s.started(t, "c")
	for range 2 { // the second time under the same name
		if err := s.execProcess(t, "c", "e"); err != nil {
			t.Fatal(err)
		}
		_, err := s.client.Start(t.Context(), &task.StartRequest{ID: "c", ExecID: "e"})
		if err == nil || !strings.Contains(err.Error(), "not found in $PATH") {
			t.Errorf("Start: %v", err)
		}
		r, err := s.client.Delete(t.Context(), &task.DeleteRequest{ID: "c", ExecID: "e"})
		if err != nil || r.GetExitStatus() != 127 {
			t.Errorf("Delete: %v, %v; want 127", r, err)
		}
	}
}

// TestExecNeverStarted: it has no exit code of something else's.
func TestExecNeverStarted(t *testing.T) {
	t.Parallel()
	s := serveShim(t, nil)
	s.started(t, "c")
	if err := s.execProcess(t, "c", "e"); err != nil {
		t.Fatal(err)
	}
	s.guest.Exit(7, time.Now())
	r, err := s.client.Delete(t.Context(), &task.DeleteRequest{ID: "c", ExecID: "e"})
	if err != nil || r.GetExitStatus() != 0 || r.GetExitedAt() != nil {
		t.Errorf("Delete: %v, %v; want code 0 and no time", r, err)
	}
}

// TestPod has several containers in one sandbox, which lives until the last has
// been deleted.
func TestPod(t *testing.T) {
	t.Parallel()
	nothing := func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Reply(&agentv1.SignalProcessResponse{}) }
	var joined []string
	create := func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
		var r agentv1.CreateContainerRequest
		if err := proto.Unmarshal(c.Payload, &r); err != nil {
			t.Error(err)
		}
		joined = append(joined, r.GetJoinNamespaces()["pid"])
		c.Reply(&agentv1.CreateContainerResponse{Pid: 42})
	}
	s := serveShim(t, map[string]sandboxtest.Fault{"DeleteContainer": nothing, "SignalProcess": nothing, "CreateContainer": create})
	wantCode(t, "container before its sandbox", s.create(t, "d", nil), codes.FailedPrecondition)
	s.started(t, "c")
	wantCode(t, "container of the same id", s.create(t, "c", nil), codes.AlreadyExists)
	var path string
	join := func(sp *specs.Spec) {
		for i := range sp.Linux.Namespaces {
			if ns := &sp.Linux.Namespaces[i]; ns.Type == specs.PIDNamespace {
				ns.Path = path
			}
		}
	}
	pid := func(id string) uint32 {
		r, err := s.client.State(t.Context(), &task.StateRequest{ID: id})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetPid()
	}
	path = fmt.Sprintf("/proc/%d/ns/pid", pid("c"))
	if err := s.create(t, "d", join); err != nil {
		t.Fatal(err)
	}
	// The debugger of one container joins that, not the first one.
	path = fmt.Sprintf("/proc/%d/ns/pid", pid("d"))
	if err := s.create(t, "e", join); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"", "c", "d"}, joined); d != "" {
		t.Errorf("the containers whose pid namespace is joined: -want +got\n%s", d)
	}
	if c, d, e := pid("c"), pid("d"), pid("e"); c == d || d == e || c == e {
		t.Errorf("pids %d, %d, %d", c, d, e)
	}
	path = "/proc/1/ns/pid"
	wantCode(t, "the host's processes", s.create(t, "f", join), codes.InvalidArgument)
	if _, err := s.client.Delete(t.Context(), &task.DeleteRequest{ID: "e"}); err != nil {
		t.Error(err)
	}
	// Never started: it can be deleted all the same.
	if _, err := s.client.Delete(t.Context(), &task.DeleteRequest{ID: "d"}); err != nil {
		t.Error(err)
	}
	if _, err := s.client.Shutdown(t.Context(), &task.ShutdownRequest{ID: "d"}); err != nil {
		t.Error(err)
	}
	if s.Machine.Ended() {
		t.Fatal("the sandbox ended with one of its containers")
	}
	s.wait(t, []string{
		"/tasks/create", "/tasks/start", "/tasks/create", "/tasks/create", "/tasks/exit e", "/tasks/delete", "/tasks/exit d", "/tasks/delete",
	})
}

// TestSlowStart: a guest that does not answer to the start of a process holds up
// nobody who asks how it is, or wants to delete it.
func TestSlowStart(t *testing.T) {
	t.Parallel()
	starting := make(chan struct{})
	s := serveShim(t, map[string]sandboxtest.Fault{
		"StartProcess": func(*sandboxtest.Guest, *sandboxtest.Call) { close(starting) }, // no answer
	})
	if err := s.create(t, "c", nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var start sync.WaitGroup
	start.Go(func() {
		if _, err := s.client.Start(ctx, &task.StartRequest{ID: "c"}); err == nil {
			t.Error("Start succeeds")
		}
	})
	defer start.Wait()
	defer cancel()
	<-starting
	_ = sandboxtest.Within(t, "State", func() error {
		if got := s.status(t, "c", ""); got != tasktypes.Status_CREATED {
			t.Errorf("it is %v", got)
		}
		return nil
	})
	_, err := s.client.Delete(t.Context(), &task.DeleteRequest{ID: "c"})
	wantCode(t, "delete of what is being started", err, codes.FailedPrecondition)
	s.Machine.End(sandboxtest.ErrKilled)
}

// TestMachineDies: everything ends with a reason, which is told in the outputs and to
// the kubelet, and can still be asked for.
func TestMachineDies(t *testing.T) {
	t.Parallel()
	s := serveShim(t, nil)
	s.guest.Stdio = func(st link.Stream, _ link.Header) { // until the link is lost
		_, _ = io.Copy(io.Discard, st)
		_ = st.Close()
	}
	file := func(name string) string {
		path := filepath.Join(s.Dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// The directory becomes a link when the container runs.
	pod, victim := filepath.Join(s.Dir, "pod"), filepath.Join(s.Dir, "victim")
	for _, dir := range []string{pod, victim} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	said, untold := file("pod/log"), file("victim/log")
	outputs := map[string]string{"c": file("c.err"), "e": file("e.err")}
	if _, err := s.client.Create(t.Context(), &task.CreateTaskRequest{ID: "c", Stderr: "file://" + outputs["c"], Bundle: s.Bundle(t, "c", func(sp *specs.Spec) {
		sp.Mounts = append(sp.Mounts, specs.Mount{Destination: "/dev/termination-log", Type: "bind", Source: said, Options: []string{"bind"}})
	})}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Start(t.Context(), &task.StartRequest{ID: "c"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Exec(t.Context(), &task.ExecProcessRequest{
		ID: "c", ExecID: "e", Stderr: "file://" + outputs["e"], Spec: &anypb.Any{Value: []byte(`{"args":["sh"],"cwd":"/"}`)},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Start(t.Context(), &task.StartRequest{ID: "c", ExecID: "e"}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(pod, pod+".moved"), os.Symlink(victim, pod)); err != nil {
		t.Fatal(err)
	}
	s.Machine.End(sandboxtest.ErrKilled)
	s.wait(t, []string{
		"/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit e", "/tasks/exit c",
	})
	said = filepath.Join(pod+".moved", "log")
	if b, err := os.ReadFile(untold); err != nil || len(b) > 0 {
		t.Errorf("a file that a link led to has %q, %v", b, err)
	}
	for _, path := range []string{said, outputs["c"], outputs["e"]} {
		b, err := os.ReadFile(path)
		if text := string(b); err != nil || strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "kata: the virtual machine died: ") {
			t.Errorf("%s has %q, %v", path, text, err)
		}
	}
	r, err := s.client.State(t.Context(), &task.StateRequest{ID: "c"})
	if err != nil || r.GetStatus() != tasktypes.Status_STOPPED || r.GetExitStatus() != 255 {
		t.Errorf("State: %v, %v; want stopped with 255", r, err)
	}
	if _, err := s.client.Kill(t.Context(), &task.KillRequest{ID: "c", Signal: 9, All: true}); err != nil {
		t.Errorf("Kill: %v", err)
	}
	if _, err := s.client.Delete(t.Context(), &task.DeleteRequest{ID: "c"}); err != nil {
		t.Errorf("Delete: %v", err)
	}
}

// TestStartFails: a sandbox that does not start leaves nothing, and the shim can
// be ended.
func TestStartFails(t *testing.T) {
	t.Parallel()
	s := serveShim(t, map[string]sandboxtest.Fault{
		"SetupSandbox": func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Fail(codes.Internal, "no\x1b[2J way") },
	})
	err := s.create(t, "c", nil)
	if err == nil {
		t.Fatal("no error")
	}
	sandboxtest.CheckReason(t, status.Convert(err).Message(), "no [2J way")
	_, err = s.client.Delete(t.Context(), &task.DeleteRequest{ID: "c"})
	wantCode(t, "delete of what was not created", err, codes.NotFound)
	s.shutdown(t)
}

// TestOneBoot: a sandbox starts once, also when its first container has been
// deleted.
func TestOneBoot(t *testing.T) {
	t.Parallel()
	s := serveShim(t, nil)
	s.started(t, "c")
	machine := s.Machine
	s.guest.Exit(0, time.Now())
	if _, err := s.client.Wait(t.Context(), &task.WaitRequest{ID: "c"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Delete(t.Context(), &task.DeleteRequest{ID: "c"}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "second start of the sandbox", s.create(t, "c", nil), codes.AlreadyExists)
	if s.Machine != machine {
		t.Error("there is a second machine")
	}
	s.shutdown(t)
}

// TestEndDuringBoot: whoever ends the shim while the sandbox starts ends that as
// well. That nothing is left is checked by the rig.
func TestEndDuringBoot(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*served, *testing.T){
		"shutdown": func(s *served, t *testing.T) {
			t.Helper()
			_, err := s.client.Shutdown(t.Context(), &task.ShutdownRequest{ID: "c", Now: true})
			if err != nil && !errors.Is(err, ttrpc.ErrClosed) {
				t.Error(err)
			}
			_ = s.conn.Close()
		},
		"signal":              func(s *served, _ *testing.T) { s.stop() },
		"death of containerd": func(s *served, _ *testing.T) { _ = s.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			booting := make(chan struct{})
			s := serveShim(t, map[string]sandboxtest.Fault{
				"SetupSandbox": func(*sandboxtest.Guest, *sandboxtest.Call) { close(booting) }, // no answer
			})
			created := make(chan error, 1)
			bundle := s.Bundle(t, "c", nil)
			go func() { // ends with the shim
				_, err := s.client.Create(context.Background(), &task.CreateTaskRequest{ID: "c", Bundle: bundle})
				created <- err
			}()
			<-booting
			end(s, t)
			select {
			case <-s.ended:
			case <-time.After(20 * time.Second):
				t.Fatal("the shim does not end")
			}
			if err := <-created; err == nil {
				t.Error("the container was created")
			}
			if !s.Machine.Ended() {
				t.Error("the machine is left")
			}
		})
	}
}

// TestRefusedAtOnce: what a virtual machine cannot do is named, with a code at
// which containerd does not ask again, and before a machine is started.
func TestRefusedAtOnce(t *testing.T) {
	t.Parallel()
	for typ, want := range map[specs.LinuxNamespaceType]string{
		specs.NetworkNamespace: "host's network",
		specs.PIDNamespace:     "host's processes",
	} {
		t.Run(string(typ), func(t *testing.T) {
			t.Parallel()
			s := serveShim(t, nil)
			err := s.create(t, "c", func(sp *specs.Spec) {
				sp.Linux.Namespaces = slices.DeleteFunc(sp.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
					return ns.Type == typ
				})
			})
			wantCode(t, "create", err, codes.InvalidArgument)
			if err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("the error does not name it: %v", err)
			}
			if s.opened.Load() {
				t.Error("a sandbox was made for it")
			}
		})
	}
}

// TestOutOfMemory: containerd learns of a kill while the container lives, once.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	s := serveShim(t, map[string]sandboxtest.Fault{
		"NextEvent": func(_ *sandboxtest.Guest, c *sandboxtest.Call) {
			// Again and again, and of a container that is none.
			c.Reply(&agentv1.NextEventResponse{Kind: agentv1.NextEventResponse_OOM, Container: "c"})
		},
	})
	s.started(t, "c")
	deadline := time.After(20 * time.Second)
	for !slices.Contains(s.containerd.events(), "/tasks/oom") {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			t.Fatal("it is not told")
		}
	}
	s.guest.Exit(137, time.Now())
	deadline = time.After(20 * time.Second)
	for !slices.Contains(s.containerd.events(), "/tasks/exit c") {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			t.Fatal("the end is not told")
		}
	}
	// The guest may speak of it before the start is told.
	got := slices.DeleteFunc(s.containerd.events(), func(e string) bool { return e == "/tasks/start" })
	if d := cmp.Diff([]string{"/tasks/create", "/tasks/oom", "/tasks/exit c"}, got); d != "" {
		t.Errorf("events: -want +got\n%s", d)
	}
}

// TestOldService: version 2 of the service is served by the same methods.
func TestOldService(t *testing.T) {
	t.Parallel()
	s := serveShim(t, nil)
	r, err := s.old.Connect(t.Context(), &taskv2.ConnectRequest{ID: "c"})
	if err != nil || r.GetShimPid() != uint32(os.Getpid()) {
		t.Errorf("Connect: %v, %v", r, err)
	}
	_, err = s.old.State(t.Context(), &taskv2.StateRequest{ID: "c"})
	wantCode(t, "state of nothing", err, codes.NotFound)
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{errors.New("x"), codes.Unknown},
		{sandbox.ErrNotFound, codes.NotFound},
		{sandbox.ErrState, codes.FailedPrecondition},
		{sandbox.ErrDead, codes.Unavailable},
		{errors.ErrUnsupported, codes.Unimplemented},
		{status.Error(codes.NotFound, "x"), codes.NotFound},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
	} {
		if got := status.Code(refuse(tt.err)); got != tt.want {
			t.Errorf("refuse(%v) has code %v, want %v", tt.err, got, tt.want)
		}
	}
}

// TestUnused: a shim of which nothing is asked ends, one that has a sandbox does
// not.
func TestUnused(t *testing.T) {
	t.Parallel()
	s := serveShim(t, nil)
	s.service.endUnused()
	select {
	case <-s.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the shim does not end")
	}
	used := serveShim(t, nil)
	used.started(t, "c")
	used.service.endUnused()
	if _, err := used.client.State(t.Context(), &task.StateRequest{ID: "c"}); err != nil {
		t.Error(err)
	}
	used.stop()
}
