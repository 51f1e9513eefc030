//go:build integration

package containerd

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// TestPodTimes measures how long a pod takes, and its first container, in each of
// the ways to make one, in turn. It holds them to nothing.
func TestPodTimes(t *testing.T) {
	if os.Getenv("KATA_LONG") == "" {
		t.Skip("it is for people to read; set KATA_LONG=1")
	}
	const rounds = 9
	d := daemons.get(t, "module")
	pods, containers := map[string][]time.Duration{}, map[string][]time.Duration{}
	ways := append(slices.Clone(runtimes), sandboxer)
	for i := range rounds {
		for _, r := range ways {
			t.Run(fmt.Sprintf("%s %d", r.name, i), func(t *testing.T) {
				begin := time.Now()
				p := ctr{Daemon: d, runtime: r.name, shim: r.shim}.runPod(t, nil)
				running := time.Now()
				p.sleeper(t, "main")
				pods[r.name] = append(pods[r.name], running.Sub(begin))
				containers[r.name] = append(containers[r.name], time.Since(running))
			})
		}
	}
	for _, r := range ways {
		slices.Sort(pods[r.name])
		slices.Sort(containers[r.name])
		if len(pods[r.name]) == rounds {
			t.Logf("%-15s pod: median %4d ms, least %4d; container: median %4d ms, least %4d", r.name,
				pods[r.name][rounds/2].Milliseconds(), pods[r.name][0].Milliseconds(),
				containers[r.name][rounds/2].Milliseconds(), containers[r.name][0].Milliseconds())
		}
	}
}
