package shim

import (
	"path/filepath"
	"testing"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestOperator: who comes to the operator's socket gets processes of his own, and
// no word about the containers, which are containerd's.
func TestOperator(t *testing.T) {
	s := serveShim(t, nil)
	s.started(t, "c")
	ctx := t.Context()
	client, err := proxy.Dial(ctx, s.Options.Config.Runtime.StateDir, s.Options.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	console, err := client.Console(ctx, &proxyv1.ConsoleRequest{})
	if err != nil || len(console.GetOutput()) == 0 || console.GetNext() != int64(len(console.GetOutput())) || console.GetOver() {
		t.Errorf("console: %v, %v", console, err)
	}
	if h, err := client.History(ctx); err != nil || len(h.Lines) != 2 || h.Lines[0].Phases[0].Name != "network namespace" || h.Lines[1].Container != "c" {
		t.Errorf("time lines: %+v, %v", h, err)
	}
	if _, err := client.Exec(ctx, &proxyv1.ExecRequest{Container: "c", Exec: "e", Process: []byte(`{"args":["sh"],"cwd":"/"}`)}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Start(ctx, &proxyv1.StartRequest{Container: "c", Exec: "e"}); err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"Start": func() error { _, err := client.Start(ctx, &proxyv1.StartRequest{Container: "c"}); return err },
		"Signal": func() error {
			_, err := client.Signal(ctx, &proxyv1.SignalRequest{Container: "c", Signal: 9})
			return err
		},
		"Wait":   func() error { _, err := client.Wait(ctx, &proxyv1.WaitRequest{Container: "c"}); return err },
		"Resize": func() error { _, err := client.Resize(ctx, &proxyv1.ResizeRequest{Container: "c"}); return err },
		"Delete": func() error { _, err := client.Delete(ctx, &proxyv1.DeleteRequest{Container: "c"}); return err },
	} {
		if err := call(); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s of a container: %v", name, err)
		}
	}
	output := "file://" + filepath.Join(t.TempDir(), "output")
	if _, err := s.client.Create(ctx, &task.CreateTaskRequest{ID: "d", Bundle: s.Bundle(t, "d", nil), Stdout: output}); err != nil {
		t.Fatal(err)
	}
	if st, err := client.OpenStdio(ctx, "d", "", 1); err == nil {
		_ = st.Close()
		t.Error("the output of a container was given away")
	}
	if _, err := s.client.Delete(ctx, &task.DeleteRequest{ID: "d"}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Shutdown(ctx, &proxyv1.ShutdownRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("shutdown: %v", err)
	}
	// Its end does not wait for a client that stays.
	s.stop()
	<-s.ended
	<-client.Gone()
}
