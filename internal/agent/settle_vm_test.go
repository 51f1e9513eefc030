//go:build integration

package agent_test

import (
	"bytes"
	"testing"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// share is the shared directory as the guest mounts it.
func share() *agentv1.Storage {
	return &agentv1.Storage{
		Driver: "9p", Source: "kata", Target: "/run/kata/shared",
		Options: []string{"trans=virtio", "version=9p2000.L", "cache=mmap", "msize=512000"},
	}
}

// TestSettle settles a guest, as before a template is saved, and then uses it.
func TestSettle(t *testing.T) {
	g := boot(t)
	for range 2 {
		start := time.Now()
		if _, err := g.agent.Settle(within(t), &agentv1.SettleRequest{}); err != nil {
			t.Fatal(err)
		}
		t.Logf("settled in %v", time.Since(start).Round(time.Millisecond))
	}
	d, err := g.agent.Details(within(t), &agentv1.DetailsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("details: %v", d)
	if _, err := g.agent.SetupSandbox(within(t), &agentv1.SetupSandboxRequest{Id: "sandbox", Entropy: []byte("little")}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a copy with little entropy: %v", err)
	}
	start := time.Now()
	if _, err := g.agent.SetupSandbox(within(t), &agentv1.SetupSandboxRequest{
		Id: "sandbox", Hostname: "pod", TimeUnixNs: time.Now().UnixNano(), Entropy: bytes.Repeat([]byte{7}, 64),
		Storages: []*agentv1.Storage{share()},
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("sandbox set up in %v", time.Since(start).Round(time.Millisecond))
	testOutput(t, g)
	if _, err := g.agent.Settle(within(t), &agentv1.SettleRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a sandbox is settled: %v", err)
	}
}
