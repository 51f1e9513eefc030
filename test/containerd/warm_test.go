//go:build integration

package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/test/harness"
)

// TestWarm starts tasks with a pool of warm clones. An engine finds the network of one
// by its process, and may fill it later, as with any other.
func TestWarm(t *testing.T) {
	each(t, func(t *testing.T, c ctr) {
		if c.runtime != "kata" {
			return // runc has no machines
		}
		e, remove, err := harness.New("[factory]\nenable_template = true\nvm_cache_number = 1")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := remove(); err != nil {
				t.Error(err)
			}
		})
		flags := []string{"--runtime-config-path", e.Config}
		if r := c.run(t, flags, "true"); r.code != 0 {
			t.Fatalf("%+v", r)
		}
		harness.PollFor(t, 4*time.Minute, "a clone waits", func() bool {
			socks, err := filepath.Glob(filepath.Join(e.State, "warm-*", "claim.sock"))
			return err == nil && len(socks) == 1
		})
		id := c.detached(t, flags, "sleep", "10000")
		logs, err := filepath.Glob(filepath.Join(e.State, "*"+id, "owner.log"))
		if err != nil || len(logs) != 1 {
			t.Fatalf("logs of %s: %v, %v", id, logs, err)
		}
		log, err := os.ReadFile(logs[0])
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(log), "sandbox is a warm clone") {
			t.Errorf("it is no warm clone:\n%s", log)
		}
		subnet := newSubnet()
		outside := fmt.Sprintf("warm%d", subnet)
		c.Network.ip(t, fmt.Sprintf("link add %s type veth peer name eth0 netns %d", outside, c.pid(t, id)))
		c.Network.ip(t, "link set up dev "+outside, fmt.Sprintf("addr add 10.%d.0.1/24 dev %s", subnet, outside))
		inside := Network{Path: c.namespace(t, id)}
		inside.ip(t, fmt.Sprintf("addr add 10.%d.0.2/24 dev eth0", subnet), "link set eth0 up")
		harness.Poll(t, "the host answers", func() bool {
			return c.exec(t, nil, id, nil, "ping", "-c", "1", "-W", "1", fmt.Sprintf("10.%d.0.1", subnet)).code == 0
		})
		c.remove(t, id) // and with it the interface
		e.EmptyPool(t)
		if left, err := e.Left(); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}
