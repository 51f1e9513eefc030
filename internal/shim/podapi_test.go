package shim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/network"
	"github.com/seed-efd44b36/kata/internal/sandbox/sandboxtest"
	"google.golang.org/grpc/codes"
)

// sandboxBundle makes the directory that containerd has for a sandbox.
func sandboxBundle(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(t.TempDir(), filepath.Join(dir, "work")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestSandboxService goes through the life of a pod without a first container.
func TestSandboxService(t *testing.T) {
	t.Parallel()
	s := serveShim(t, nil)
	sb := s.sandboxes
	_, err := sb.StartSandbox(t.Context(), &api.StartSandboxRequest{SandboxID: "c"})
	wantCode(t, "start before create", err, codes.FailedPrecondition)
	_, err = sb.CreateSandbox(t.Context(), &api.CreateSandboxRequest{SandboxID: "c", BundlePath: sandboxBundle(t)})
	wantCode(t, "a pod on the host's network", err, codes.Unimplemented)
	_, err = sb.CreateSandbox(t.Context(), &api.CreateSandboxRequest{SandboxID: "other"})
	wantCode(t, "another sandbox", err, codes.NotFound)
	create := &api.CreateSandboxRequest{SandboxID: "c", BundlePath: sandboxBundle(t), NetnsPath: emptyNetNS(t)}
	if _, err := sb.CreateSandbox(t.Context(), create); err != nil {
		t.Fatal(err)
	}
	_, err = sb.CreateSandbox(t.Context(), create)
	wantCode(t, "second create", err, codes.AlreadyExists)
	if st, err := sb.SandboxStatus(t.Context(), &api.SandboxStatusRequest{SandboxID: "c"}); err != nil || st.GetState() != "SANDBOX_NOTREADY" {
		t.Errorf("before the start: %v, %v", st, err)
	}
	started, err := sb.StartSandbox(t.Context(), &api.StartSandboxRequest{SandboxID: "c"})
	if err != nil || started.GetPid() == 0 {
		t.Fatalf("%v, %v", started, err)
	}
	if p, err := sb.Platform(t.Context(), &api.PlatformRequest{SandboxID: "c"}); err != nil || p.GetPlatform().GetOS() != "linux" {
		t.Errorf("platform %v, %v", p, err)
	}
	if _, err := sb.PingSandbox(t.Context(), &api.PingRequest{SandboxID: "c"}); err != nil {
		t.Errorf("ping: %v", err)
	}
	if m, err := sb.SandboxMetrics(t.Context(), &api.SandboxMetricsRequest{SandboxID: "c"}); err != nil || m.GetMetrics().GetData() == nil {
		t.Errorf("metrics %v, %v", m, err)
	}
	st, err := sb.SandboxStatus(t.Context(), &api.SandboxStatusRequest{SandboxID: "c", Verbose: true})
	if err != nil || st.GetState() != "SANDBOX_READY" || st.GetPid() != started.GetPid() || !strings.Contains(st.GetInfo()["info"], "running") {
		t.Errorf("status %v, %v", st, err)
	}

	// A container joins it, and is no end of it.
	join := func(sp *specs.Spec) {
		for i := range sp.Linux.Namespaces {
			if ns := &sp.Linux.Namespaces[i]; ns.Type != specs.MountNamespace && ns.Type != specs.NetworkNamespace {
				ns.Path = fmt.Sprintf("/proc/%d/ns/%s", started.GetPid(), ns.Type)
			}
		}
	}
	if err := s.create(t, "d", join); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Start(t.Context(), &task.StartRequest{ID: "d"}); err != nil {
		t.Fatal(err)
	}
	s.guest.Exit(3, time.Now())
	s.wait(t, []string{"/tasks/create", "/tasks/start", "/tasks/exit d"})
	if _, err := s.client.Delete(t.Context(), &task.DeleteRequest{ID: "d"}); err != nil {
		t.Error(err)
	}
	if _, err := s.client.Shutdown(t.Context(), &task.ShutdownRequest{ID: "d"}); err != nil {
		t.Error(err)
	}
	if s.Machine.Ended() {
		t.Fatal("the sandbox ended with its only container")
	}

	ended := make(chan *api.WaitSandboxResponse, 1)
	var wait sync.WaitGroup
	wait.Go(func() {
		w, err := sb.WaitSandbox(context.Background(), &api.WaitSandboxRequest{SandboxID: "c"})
		if err != nil {
			t.Error(err)
		}
		ended <- w
	})
	for range 2 {
		if _, err := sb.StopSandbox(t.Context(), &api.StopSandboxRequest{SandboxID: "c"}); err != nil {
			t.Error(err)
		}
	}
	wait.Wait()
	if w := <-ended; w.GetExitStatus() != 0 || w.GetExitedAt() == nil {
		t.Errorf("wait: %v", w)
	}
	st, err = sb.SandboxStatus(t.Context(), &api.SandboxStatusRequest{SandboxID: "c", Verbose: true})
	if err != nil || st.GetState() != "SANDBOX_NOTREADY" || st.GetInfo()["reason"] != "" {
		t.Errorf("after the stop: %v, %v", st, err)
	}
	wantCode(t, "a container after the stop", s.create(t, "e", join), codes.Unavailable)
	if _, err := sb.ShutdownSandbox(t.Context(), &api.ShutdownSandboxRequest{SandboxID: "c"}); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	_ = s.conn.Close() // as containerd does then
	select {
	case <-s.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the shim does not end")
	}
}

// TestSandboxDies: containerd learns of it by Wait, and why by the status.
func TestSandboxDies(t *testing.T) {
	t.Parallel()
	s := serveShim(t, nil)
	sb := s.sandboxes
	if _, err := sb.CreateSandbox(t.Context(), &api.CreateSandboxRequest{SandboxID: "c", BundlePath: sandboxBundle(t), NetnsPath: emptyNetNS(t)}); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.StartSandbox(t.Context(), &api.StartSandboxRequest{SandboxID: "c"}); err != nil {
		t.Fatal(err)
	}
	s.Machine.End(sandboxtest.ErrKilled)
	w, err := sb.WaitSandbox(t.Context(), &api.WaitSandboxRequest{SandboxID: "c"})
	if err != nil || w.GetExitStatus() != 255 {
		t.Errorf("wait: %v, %v; want 255", w, err)
	}
	st, err := sb.SandboxStatus(t.Context(), &api.SandboxStatusRequest{SandboxID: "c", Verbose: true})
	if err != nil || st.GetState() != "SANDBOX_NOTREADY" {
		t.Errorf("status %v, %v", st, err)
	}
	sandboxtest.CheckReason(t, st.GetInfo()["reason"], "the virtual machine died")
	_, err = sb.PingSandbox(t.Context(), &api.PingRequest{SandboxID: "c"})
	wantCode(t, "ping", err, codes.Unavailable)
}

// emptyNetNS makes a network namespace for a pod.
func emptyNetNS(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kata") //nolint:usetesting // it must outlive the shim's last look at it
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "netns")
	if err := network.NewNS(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.DeleteNS(context.Background(), path); err != nil {
			t.Error(err)
		}
		_ = os.Remove(dir)
	})
	return path
}
