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

// olderRuntimes are further ways to name kata-runtime.
const olderRuntimes = `
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
		further := fmt.Sprintf(olderRuntimes, cli, cli)
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
	t.Run("ctr", func(t *testing.T) {
		out, err := d.Ctr(t.Context(), "run", "--rm", "--runtime", "io.containerd.runc.v2", "--runc-binary", filepath.Join(env.Bin, "kata-runtime"),
			"localhost/busybox:latest", "older", "uname", "-r").CombinedOutput()
		if k := strings.TrimSpace(string(out)); err != nil || k == ownKernel(t) {
			t.Errorf("%v: %s", err, out)
		}
	})
	harness.Poll(t, "all is gone", func() bool {
		s := harness.Snapshot{}
		if err := d.look(s); err != nil {
			t.Fatal(err)
		}
		return len(s) == 0
	})
}
