//go:build integration

package containerd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-efd44b36/kata/test/harness"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// look prints what is in a network namespace but our tap devices: interfaces with
// their addresses, routes, rules and neighbours. What cannot be the same in a guest
// (counters, flags, what an interface is made of) is left out.
const look = `
ip() { busybox ip "$@"; }
ip -o link | sed 's/^[0-9]*: \([^:@]*\).* mtu \([0-9]*\).*/\1 mtu \2/' | sort
ip -o link | sed -n 's/^[0-9]*: \(eth\|net\)\([0-9]\).*link.ether \([0-9a-f:]*\).*/\1\2 \3/p' | sort
ip -o addr | grep -v ' lo ' | sed 's/^[0-9]*: *//; s/ *\\\\.*//; s/flags .. //; s/ noprefixroute//; s/@[^ ]*//' | sort
ip route; ip route show table 100; ip -6 route | sort; ip rule; ip -6 rule
ip neigh show nud permanent | sed 's/ used.*//'`

// lookAt runs look in a network namespace of the host.
func lookAt(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "nsenter", "--net="+path, "busybox", "sh", "-c", look).CombinedOutput()
	if err != nil {
		t.Fatalf("look at %s: %v: %s", path, err, out)
	}
	return seen(string(out))
}

// seen leaves out what is of our tap devices and of lo.
func seen(out string) string {
	var lines []string
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); !strings.Contains(line, "katatap") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

// subnets are numbers of networks: 10.N.0.0/24 and fd00:N::/64.
var subnets atomic.Int64

func newSubnet() int { return 90 + int(subnets.Add(1)) }

// extra is a CNI plugin that does what others do with routes and neighbours.
const extra = `#!/bin/sh -e
[ "$CNI_COMMAND" = ADD ] || { cat >/dev/null; exit; }
conf=$(cat)
nsenter --net="$CNI_NETNS" ip -batch - <<END
route add 10.200.0.0/16 via 10.SUBNET.0.1 dev $CNI_IFNAME mtu 1300
route add 10.201.0.0/16 dev $CNI_IFNAME scope link metric 5
route add default via 10.SUBNET.0.1 dev $CNI_IFNAME table 100
rule add from 10.SUBNET.0.0/24 table 100 priority 500
neigh add 10.SUBNET.0.77 lladdr 02:00:00:00:00:77 dev $CNI_IFNAME nud permanent
END
printf %s "$conf" | sed 's/.*"prevResult":\(.*\),"type":.*/\1/'
`

// bridgeConfig is a CNI network with a bridge of its own.
func bridgeConfig(dir string, mtu, number int, more string) string {
	bridge := fmt.Sprintf("net-%d", number)
	return fmt.Sprintf(`{ "cniVersion": "0.4.0", "name": %q, "plugins": [
  { "type": "bridge", "bridge": %q, "isGateway": true, "mtu": %d,
    "ipam": { "type": "host-local", "dataDir": %q,
      "ranges": [[{ "subnet": "10.%d.0.0/24" }], [{ "subnet": "fd00:%d::/64" }]],
      "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] } }%s ] }
`, bridge, bridge, mtu, filepath.Join(dir, "addresses"), number, number, more)
}

// TestNetworks is of a pod with two CNI networks.
func TestNetworks(t *testing.T) {
	t.Parallel()
	for _, release := range []string{"debian", "module"} {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			first, second := newSubnet(), newSubnet()
			d := ownDaemon(t, release, "networks-"+release, func(d *Daemon) error {
				if err := d.Install(t.Context()); err != nil {
					return err
				}
				return twoNetworks(d, first, second)
			})
			for _, r := range runtimes {
				t.Run(r.name, func(t *testing.T) {
					if r.name == "kata" {
						needKata(t)
					}
					testNetworks(t, ctr{Daemon: d, runtime: r.name, shim: r.shim}, first, second)
				})
			}
		})
	}
}

func testNetworks(t *testing.T, c ctr, first, second int) {
	t.Helper()
	p := c.runPod(t, nil)
	main := p.sleeper(t, "main")
	r, err := p.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	ns := regexp.MustCompile(`/run/netns/cni-[0-9a-f-]*`).FindString(r.Info["info"])
	want := lookAt(t, ns)
	for _, line := range []string{
		"eth0 mtu 1450", "eth1 mtu 9000",
		fmt.Sprintf("10.200.0.0/16 via 10.%d.0.1 dev eth1", second), fmt.Sprintf("500:	from 10.%d.0.0/24 lookup 100", second),
	} {
		if !strings.Contains(want, line) {
			t.Errorf("the namespace has no %q", line)
		}
	}
	if diff := cmp.Diff(want, seen(p.sh(t, main, look))); diff != "" {
		t.Errorf("-namespace +container:\n%s", diff)
	}
	for number, size := range map[int]int{first: 1400, second: 8900} {
		for _, gateway := range []string{fmt.Sprintf("10.%d.0.1", number), fmt.Sprintf("fd00:%d::1", number)} {
			harness.Poll(t, gateway+" answers", func() bool { // the bridge's own address may not be usable yet
				r, err := p.ExecSync(t.Context(), &runtime.ExecSyncRequest{ContainerId: main, Cmd: []string{"ping", "-c", "1", "-W", "1", "-s", strconv.Itoa(size), gateway}})
				return err == nil && r.ExitCode == 0
			})
		}
	}
}

// TestLateNetwork is of a container that gets its network after it was created,
// another one while it runs, and loses that again.
func TestLateNetwork(t *testing.T) {
	each(t, func(t *testing.T, c ctr) {
		t.Parallel()
		first, second := newSubnet(), newSubnet()
		id := c.detachedCNI(t, first, "sleep", "10000")
		ns := c.namespace(t, id)
		same := func() {
			t.Helper()
			var diff string
			defer func() {
				if t.Failed() {
					t.Errorf("-namespace +container:\n%s", diff)
				}
			}()
			harness.Poll(t, "container and namespace have the same network", func() bool {
				diff = cmp.Diff(lookAt(t, ns), seen(c.exec(t, nil, id, nil, "sh", "-c", look).out))
				return diff == ""
			})
		}
		answers := func(address string) {
			t.Helper()
			harness.Poll(t, address+" answers", func() bool { return c.exec(t, nil, id, nil, "ping", "-c", "1", "-W", "1", address).code == 0 })
		}
		// At once: what was there before the start must not need any time.
		got := c.exec(t, nil, id, nil, "ip", "-o", "addr", "show", "eth0").out
		for _, want := range []string{fmt.Sprintf(" 10.%d.0.", first), fmt.Sprintf(" fd00:%d::", first)} {
			if !strings.Contains(got, want) {
				t.Errorf("eth0 has no address %s:\n%s", want, got)
			}
		}
		same()
		answers(fmt.Sprintf("10.%d.0.1", first))
		answers(fmt.Sprintf("fd00:%d::1", first))

		// As an engine connects a network.
		outside := fmt.Sprintf("late%d", second)
		c.Network.ip(t, fmt.Sprintf("link add %s type veth peer name net1 netns %d", outside, c.pid(t, id)))
		t.Cleanup(func() { c.Network.ip(t, "link delete "+outside) })
		c.Network.ip(t, "link set up dev "+outside, fmt.Sprintf("addr add 10.%d.0.1/24 dev %s", second, outside))
		inside := Network{Path: ns}
		inside.ip(t, fmt.Sprintf("addr add 10.%d.0.2/24 dev net1", second), "link set net1 mtu 1300 up", fmt.Sprintf("route add 10.201.0.0/16 via 10.%d.0.1", second))
		same()
		answers(fmt.Sprintf("10.%d.0.1", second))
		inside.ip(t, "link set net1 down", "addr flush dev net1")
		if c.runtime == "kata" { // an interface that is down is not passed on
			harness.Poll(t, "the interface goes", func() bool {
				return !strings.Contains(c.exec(t, nil, id, nil, "ip", "addr").out, "net1")
			})
		}
		answers(fmt.Sprintf("10.%d.0.1", first))
	})
}

// ip runs commands of ip(8) in the namespace.
func (n *Network) ip(t *testing.T, commands ...string) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "nsenter", "--net="+n.Path, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("ip: %v: %s", err, out)
	}
}

// detachedCNI is detached for a container with the network of --cni. ctr calls
// the plugins itself, and knows no other places for them than these two.
func (c ctr) detachedCNI(t *testing.T, subnet int, command ...string) string {
	t.Helper()
	dir, id := t.TempDir(), newID(t)
	list := filepath.Join(dir, "late.conflist")
	if err := os.WriteFile(list, []byte(bridgeConfig(dir, 1450, subnet, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.remove(t, id)
		c.Network.ip(t, fmt.Sprintf("link delete net-%d", subnet))
	})
	run := c.Ctr(t.Context(), c.runArgs(id, []string{"--detach", "--null-io", "--cni"}, command)...)
	cmd := exec.CommandContext(t.Context(), "unshare", append([]string{
		"--mount", "nsenter", "--net=" + c.Network.Path, "sh", "-ec", `
mount -t tmpfs tmpfs /opt && mkdir -p /opt/cni/bin && mount --bind /usr/lib/cni /opt/cni/bin
mount -t tmpfs tmpfs /etc && mkdir -p /etc/cni/net.d && cp "$0" /etc/cni/net.d
exec "$@"`, list,
	}, run.Args...)...)
	cmd.Env = run.Env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ctr run --cni: %v: %s", err, out)
	}
	return id
}

// pid is that of a task, as ctr tells it.
func (c ctr) pid(t *testing.T, id string) int {
	t.Helper()
	for line := range strings.Lines(c.must(t, "tasks", "list")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == id {
			if pid, err := strconv.Atoi(f[1]); err == nil {
				return pid
			}
		}
	}
	t.Fatalf("container %s has no pid", id)
	return 0
}

// namespace is the network namespace of a task.
func (c ctr) namespace(t *testing.T, id string) string {
	t.Helper()
	return fmt.Sprintf("/proc/%d/ns/net", c.pid(t, id))
}

// twoNetworks gives the pods of a daemon two networks.
func twoNetworks(d *Daemon, first, second int) error {
	dir := filepath.Join(filepath.Dir(d.Config), "two")
	confs, bin := filepath.Join(dir, "net.d"), filepath.Join(dir, "bin")
	for _, p := range []string{confs, bin} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			return err
		}
	}
	plugins, err := filepath.Glob("/usr/lib/cni/*")
	if err != nil {
		return err
	}
	for _, p := range plugins {
		if err := os.Symlink(p, filepath.Join(bin, filepath.Base(p))); err != nil {
			return err
		}
	}
	for path, text := range map[string]string{
		filepath.Join(bin, "extra"):                strings.ReplaceAll(extra, "SUBNET", strconv.Itoa(second)),
		filepath.Join(confs, "10-first.conflist"):  bridgeConfig(dir, 1450, first, ""),
		filepath.Join(confs, "20-second.conflist"): bridgeConfig(dir, 9000, second, `, { "type": "extra" }`),
	} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			return err
		}
	}
	config, err := os.ReadFile(d.Config)
	if err != nil {
		return err
	}
	text := strings.ReplaceAll(string(config), "/usr/lib/cni", bin)
	old := filepath.Join(filepath.Dir(d.Config), "cni", "net.d")
	text = strings.Replace(text, fmt.Sprintf("conf_dir = %q", old), fmt.Sprintf("conf_dir = %q\nmax_conf_num = 2", confs), 1)
	return os.WriteFile(d.Config, []byte(text), 0o600)
}
