//go:build integration

package e2e

import (
	"encoding/xml"
	"slices"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/test/harness"
)

// TestTrace asks for the time line of a container that runs, in each form and by
// each program, and of starts that end or fail.
func TestTrace(t *testing.T) {
	t.Parallel()
	id := start(t, "--name", "traced", "--network", "none", busybox, "sh", "-c", "echo out; exec sleep 10000")
	want := []string{
		"kata", "kata/program start", "kata/guest image", "kata/image and bundle", "kata/start kata-proxy",
		"kata-proxy", "kata-proxy/program start", "kata-proxy/open sandbox", "kata-proxy/boot",
		"kata-proxy/boot/guest image", "kata-proxy/boot/host cgroup", "kata-proxy/boot/shared directory",
		"kata-proxy/boot/VMM", "kata-proxy/boot/VMM/QEMU's process", "kata-proxy/boot/VMM/QEMU up", "kata-proxy/boot/VMM/run the guest",
		"kata-proxy/boot/agent's first answer", "kata-proxy/boot/guest set-up",
		"kata-proxy/create container", "kata-proxy/create container/share rootfs", "kata-proxy/create container/create in guest", "kata-proxy/create container/create in guest/agent",
		"kata-proxy/create container/create in guest/agent/decode", "kata-proxy/create container/create in guest/agent/root and limits",
		"kata-proxy/start container", "kata-proxy/start container/start in guest",
	}
	const output = "kata-proxy/first output"
	harness.Poll(t, "the first output is in the time line", func() bool {
		return slices.Contains(harness.TimeLine(t, env.MustKata(t, "trace", "--json", "traced"))[""], output)
	})
	env.MustKata(t, "exec", "traced", "echo", "hello")
	lines := harness.TimeLine(t, env.MustKata(t, "trace", "--json", id[:12]))
	harness.InOrder(t, lines[""], want...)
	delete(lines, "")
	for name, phases := range lines { // the one exec
		if !strings.HasPrefix(name, id+" exec-") {
			t.Errorf("a start of %q", name)
		}
		harness.InOrder(t, phases, "create exec", "start exec", "start exec/start in guest")
		if !slices.Contains(phases, "first output") {
			t.Errorf("the exec said nothing: %q", phases)
		}
	}
	table := env.MustKata(t, "trace", "traced")
	for _, text := range []string{"sandbox " + id + ", started ", "start ms", "  boot  ", "first output"} {
		if !strings.Contains(table, text) {
			t.Errorf("the table does not have %q:\n%s", text, table)
		}
	}
	r, err := env.Run(t.Context(), nil, "kata-runtime", "trace", "--svg", id)
	if err != nil || r.Code != 0 {
		t.Fatalf("kata-runtime trace: %v, %+v", err, r)
	}
	if err := xml.NewDecoder(strings.NewReader(r.Stdout)).Decode(new(struct{})); err != nil || !strings.HasPrefix(r.Stdout, "<svg ") {
		t.Errorf("the picture: %v: %.200s", err, r.Stdout)
	}
	if r := env.Kata(t, "trace", "no-such"); r.Code == 0 || !strings.Contains(r.Stderr, "there is no sandbox or container") {
		t.Errorf("trace of nothing: %+v", r)
	}
	env.MustKata(t, "stop", "-t", "0", "traced")
	if r := env.Kata(t, "trace", "traced"); r.Code == 0 || !strings.Contains(r.Stderr, "its time line went with its sandbox") {
		t.Errorf("trace of what has ended: %+v", r)
	}
}

// TestTraceFlag: `--trace` prints the time line also of what fails, beside the error.
func TestTraceFlag(t *testing.T) {
	t.Parallel()
	r := env.KataInput(t, strings.NewReader(""), "run", "--rm", "--trace", "--network", "none", busybox, "echo", "hello")
	if r.Code != 0 || r.Stdout != "hello\n" || !strings.Contains(r.Stderr, "first output") || !strings.Contains(r.Stderr, "start in guest") {
		t.Errorf("kata run --trace: %+v", r)
	}
	r = env.Kata(t, "run", "--rm", "--trace", "--network", "none", busybox, "no-such-command")
	if i := strings.Index(r.Stderr, "create container"); r.Code != 127 || i < 0 || !strings.Contains(r.Stderr[i:], "kata: ") {
		t.Errorf("a command that is missing: %+v", r)
	}
	r = env.Kata(t, "run", "--rm", "--trace", "--network", "none", "oci:/no/such/image", "true")
	if r.Code != 125 || !strings.Contains(r.Stderr, "image and bundle") || strings.Contains(r.Stderr, "kata-proxy") {
		t.Errorf("an image that is missing: %+v", r)
	}
}
