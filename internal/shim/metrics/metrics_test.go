package metrics

import (
	"math"
	"testing"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
)

func figures() *agentv1.StatsContainerResponse {
	return &agentv1.StatsContainerResponse{
		Cpu:    &agentv1.CPUStats{UsageUsec: 5, UserUsec: 3, SystemUsec: 2},
		Memory: &agentv1.MemoryStats{Usage: 1000, Stat: map[string]uint64{"inactive_file": 300, "anon": 400, "file": 600}},
		Pids:   &agentv1.PidsStats{Current: 2},
		Io:     []*agentv1.IOStats{{Major: 8, Rbytes: 1, Wbytes: 2}},
	}
}

// TestWorkingSet computes it as the CRI does.
func TestWorkingSet(t *testing.T) {
	t.Parallel()
	m1, m2 := V1(figures()), V2(figures())
	if got := m1.GetMemory().GetUsage().GetUsage() - m1.GetMemory().GetTotalInactiveFile(); got != 700 {
		t.Errorf("version 1: %d, want 700", got)
	}
	if got := m2.GetMemory().GetUsage() - m2.GetMemory().GetInactiveFile(); got != 700 {
		t.Errorf("version 2: %d, want 700", got)
	}
}

func TestUnits(t *testing.T) {
	t.Parallel()
	m1, m2 := V1(figures()), V2(figures())
	if got := m1.GetCPU().GetUsage(); got.GetTotal() != 5000 || got.GetUser() != 3000 || got.GetKernel() != 2000 {
		t.Errorf("nanoseconds of version 1: %v", got)
	}
	if got := m2.GetCPU().GetUsageUsec(); got != 5 {
		t.Errorf("microseconds of version 2: %v", got)
	}
	if got := m1.GetMemory().GetUsage().GetLimit(); got != 9223372036854771712 {
		t.Errorf("no limit in version 1: %d", got)
	}
	if got := m2.GetMemory().GetUsageLimit(); got != math.MaxUint64 {
		t.Errorf("no limit in version 2: %d", got)
	}
	limited := figures()
	limited.Memory.Limit = 4096
	if V1(limited).GetMemory().GetUsage().GetLimit() != 4096 || V2(limited).GetMemory().GetUsageLimit() != 4096 {
		t.Error("a limit is lost")
	}
}

// A guest may leave out whatever it likes.
func TestNothing(t *testing.T) {
	t.Parallel()
	_, _ = V1(nil), V2(nil)
	_, _ = V1(&agentv1.StatsContainerResponse{}), V2(&agentv1.StatsContainerResponse{})
}
