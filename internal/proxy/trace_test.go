package proxy

import (
	"io"
	"strings"
	"testing"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/sandbox/sandboxtest"
	"google.golang.org/grpc/codes"
)

// history is what a client is told, a line for each start and phase.
func (r *rig) history(t *testing.T) string {
	t.Helper()
	h, err := r.client.History(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, l := range h.Lines {
		b.WriteString("[" + l.Container + "/" + l.Exec + "]\n")
		for _, p := range l.Phases {
			b.WriteString(strings.Repeat(" ", 1+p.Depth) + p.Name)
			if p.Open {
				b.WriteString("…")
			}
			b.WriteByte('\n')
			if p.Start.IsZero() || p.Dur < 0 {
				t.Errorf("%+v", p)
			}
		}
	}
	return b.String()
}

// inOrder tells of lines of want that are not in got in that order.
func inOrder(t *testing.T, got, want string) {
	t.Helper()
	rest := got
	for line := range strings.Lines(want) {
		_, after, found := strings.Cut(rest, line)
		if !found {
			t.Errorf("%q is missing, or in another order, in:\n%s", line, got)
			return
		}
		rest = after
	}
}

const booted = `[/]
 boot
  guest image
  host cgroup
  shared directory
  network
  VMM
  agent's first answer
  guest set-up
`

func TestTrace(t *testing.T) {
	g := &sandboxtest.Guest{
		Stdio: func(s link.Stream, _ link.Header) {
			_, _ = io.WriteString(s, "some output")
			_ = s.Close()
		},
		Faults: map[string]sandboxtest.Fault{
			"Details": func(_ *sandboxtest.Guest, c *sandboxtest.Call) { // it lies
				c.Reply(&agentv1.DetailsResponse{BootToNowMs: 1 << 63, BootToAgentMs: 1, BootToReadyMs: 1<<64 - 1})
			},
		},
	}
	r := newRig(t, g, nil)
	r.boot(t, &proxyv1.BootRequest{})
	inOrder(t, r.history(t), booted)
	r.create(t, &proxyv1.CreateRequest{Stdout: true})
	out, err := r.client.OpenStdio(t.Context(), "c", "", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.ReadAll(out); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	if _, err := r.client.Exec(t.Context(), &proxyv1.ExecRequest{Container: "c", Exec: "e", Process: []byte(`{"args":["sh"],"cwd":"/"}`)}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client.Start(t.Context(), &proxyv1.StartRequest{Container: "c", Exec: "e"}); err != nil {
		t.Fatal(err)
	}
	want := booted + `[c/]
 create container
  share rootfs
  create in guest
 first output
 start container
  start in guest
[c/e]
 create exec
 start exec
  start in guest
`
	inOrder(t, r.history(t), want)
}

// TestTraceOfAFailure: what has failed can still be asked how far it came.
func TestTraceOfAFailure(t *testing.T) {
	r := newRig(t, &sandboxtest.Guest{Faults: map[string]sandboxtest.Fault{
		"SetupSandbox": func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Fail(codes.Internal, "no") },
	}}, nil)
	if _, err := r.client.Boot(t.Context(), &proxyv1.BootRequest{}); err == nil {
		t.Fatal("no error")
	}
	inOrder(t, r.history(t), booted)
}
