//go:build integration

package containerd

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/test/harness"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// seedConfig has the tables of containerd's configuration as people know them
// from the article that this project began with, letter by letter.
//
//go:embed testdata/seed.toml
var seedConfig string

// olderRuntimes are further ways to name kata-runtime: two handlers, and what the
// oldest kind of shim runs for clients that name nothing, such as ctr.
const olderRuntimes = `
[plugins.linux]
  runtime = %q
[plugins.cri.containerd.runtimes.katacli2]
  runtime_type = "io.containerd.runc.v2"
  [plugins.cri.containerd.runtimes.katacli2.options]
    BinaryName = %q
[plugins.cri.containerd.runtimes.katalinux]
  runtime_type = "io.containerd.runtime.v1.linux"
  runtime_engine = %q
`

// kernel runs a container in a pod and returns the kernel that it sees.
func (p *pod) kernel(t *testing.T) string {
	t.Helper()
	return p.output(t, containerConfig("kernel", "uname", "-r"))
}

func ownKernel(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// untrusted marks a pod as the CRI of containerd 1.x wants it.
func untrusted(config *runtime.PodSandboxConfig) {
	config.Annotations = map[string]string{"io.kubernetes.cri.untrusted-workload": "true"}
}

// TestUntrustedWorkload runs an annotated pod without naming a handler.
func TestUntrustedWorkload(t *testing.T) {
	needKata(t)
	c := ctr{Daemon: daemons.get(t, "debian")}
	p := c.runPod(t, untrusted)
	if k := p.kernel(t); k == ownKernel(t) {
		t.Errorf("the pod runs on the host's kernel, %s", k)
	}
}

// testOlder runs containers of ctr by kata-runtime.
func testOlder(t *testing.T, c ctr, flags []string) {
	r := c.run(t, flags, "sh", "-c", "uname -r; echo oops >&2; exit 7")
	if r.code != 7 || r.out == ownKernel(t)+"\n" || r.errOut != "oops\n" {
		t.Errorf("run: %+v", r)
	}
	id := c.detached(t, flags, "sleep", "1000")
	if got := c.exec(t, strings.NewReader("typed"), id, nil, "sh", "-c", "cat; exit 3"); got.code != 3 || got.out != "typed" {
		t.Errorf("exec: %+v", got)
	}
	c.must(t, "tasks", "kill", "-s", "KILL", id)
	harness.Poll(t, "the task has ended", func() bool { return c.status(t, id) == "STOPPED" })
}

// TestSeedConfiguration uses a configuration without a version, as written for
// containerd 1.3.
func TestSeedConfiguration(t *testing.T) {
	needKata(t)
	d := ownDaemon(t, "debian", "seed", func(d *Daemon) error {
		head, err := d.configV1()
		if err != nil {
			return err
		}
		cli := filepath.Join(env.Bin, "kata-runtime")
		further := fmt.Sprintf(olderRuntimes, cli, cli, cli)
		return os.WriteFile(d.Config, []byte(head+strings.Replace(seedConfig, "/usr/bin/kata-runtime", cli, 1)+further), 0o600)
	})
	for _, tc := range []struct {
		name, handler string
		change        func(*runtime.PodSandboxConfig)
		own           bool
	}{
		{name: "runc", handler: "runc", own: true},
		{name: "kata", handler: "kata"},
		{name: "katacli", handler: "katacli"},
		{name: "runc.v2", handler: "katacli2"},
		{name: "v1.linux", handler: "katalinux"},
		{name: "untrusted", change: untrusted},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := ctr{Daemon: d, runtime: tc.handler}.runPod(t, tc.change)
			if k := p.kernel(t); (k == ownKernel(t)) != tc.own {
				t.Errorf("kernel %s, the host's is %s", k, ownKernel(t))
			}
			p.remove()
		})
	}
	for _, tc := range []struct {
		shim  string
		flags []string
	}{
		{"io.containerd.runc.v2", []string{"--runc-binary", filepath.Join(env.Bin, "kata-runtime")}},
		{"io.containerd.runtime.v1.linux", nil},
	} {
		t.Run("ctr "+tc.shim, func(t *testing.T) { testOlder(t, ctr{Daemon: d, shim: tc.shim}, tc.flags) })
	}
	harness.Poll(t, "all is gone", func() bool {
		s := harness.Snapshot{}
		if err := d.look(s); err != nil {
			t.Fatal(err)
		}
		return len(s) == 0
	})
}
