// Package metrics turns what a guest's agent tells of a container into the
// messages that containerd and the CRI read: those of cgroup version 1 or 2, by
// what the host has, since that is what they expect of any runtime there. In the
// guest it is always version 2. It is pure; the figures are the guest's word.
package metrics

import (
	"math"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
)

// unlimitedV1 is what the memory controller of version 1 reports for no limit:
// the largest number of whole pages.
const unlimitedV1 = math.MaxInt64 &^ 4095

const nanosPerMicro = 1000

// V1 is for a host with cgroup version 1. The CRI's working set is usage without
// total_inactive_file.
func V1(r *agentv1.StatsContainerResponse) *v1.Metrics {
	cpu, mem, stat := r.GetCpu(), r.GetMemory(), r.GetMemory().GetStat()
	memory := &v1.MemoryStat{
		Cache: stat["file"], RSS: stat["anon"], RSSHuge: stat["anon_thp"], MappedFile: stat["file_mapped"],
		Dirty: stat["file_dirty"], Writeback: stat["file_writeback"],
		PgFault: stat["pgfault"], PgMajFault: stat["pgmajfault"],
		InactiveAnon: stat["inactive_anon"], ActiveAnon: stat["active_anon"],
		InactiveFile: stat["inactive_file"], ActiveFile: stat["active_file"], Unevictable: stat["unevictable"],
		HierarchicalMemoryLimit: orUnlimited(mem.GetLimit(), unlimitedV1),
		HierarchicalSwapLimit:   orUnlimited(mem.GetSwapLimit(), unlimitedV1),
		Usage:                   &v1.MemoryEntry{Limit: orUnlimited(mem.GetLimit(), unlimitedV1), Usage: mem.GetUsage(), Max: mem.GetPeak(), Failcnt: mem.GetOom()},
		// In version 1 it is of memory and swap together.
		Swap:      &v1.MemoryEntry{Limit: orUnlimited(mem.GetSwapLimit(), unlimitedV1), Usage: mem.GetUsage() + mem.GetSwapUsage()},
		Kernel:    &v1.MemoryEntry{Limit: unlimitedV1, Usage: stat["kernel"]},
		KernelTCP: &v1.MemoryEntry{Limit: unlimitedV1, Usage: stat["sock"]},
	}
	// Version 2 counts the whole tree always.
	memory.TotalCache, memory.TotalRSS, memory.TotalRSSHuge = memory.Cache, memory.RSS, memory.RSSHuge
	memory.TotalMappedFile, memory.TotalDirty, memory.TotalWriteback = memory.MappedFile, memory.Dirty, memory.Writeback
	memory.TotalPgFault, memory.TotalPgMajFault = memory.PgFault, memory.PgMajFault
	memory.TotalInactiveAnon, memory.TotalActiveAnon = memory.InactiveAnon, memory.ActiveAnon
	memory.TotalInactiveFile, memory.TotalActiveFile = memory.InactiveFile, memory.ActiveFile
	memory.TotalUnevictable = memory.Unevictable
	m := &v1.Metrics{
		Pids: &v1.PidsStat{Current: r.GetPids().GetCurrent(), Limit: r.GetPids().GetLimit()},
		CPU: &v1.CPUStat{
			Usage: &v1.CPUUsage{
				Total: cpu.GetUsageUsec() * nanosPerMicro, Kernel: cpu.GetSystemUsec() * nanosPerMicro, User: cpu.GetUserUsec() * nanosPerMicro,
			},
			Throttling: &v1.Throttle{Periods: cpu.GetNrPeriods(), ThrottledPeriods: cpu.GetNrThrottled(), ThrottledTime: cpu.GetThrottledUsec() * nanosPerMicro},
		},
		Memory:           memory,
		MemoryOomControl: &v1.MemoryOomControl{OomKill: mem.GetOomKill()},
		Blkio:            &v1.BlkIOStat{},
	}
	for _, io := range r.GetIo() {
		m.Blkio.IoServiceBytesRecursive = append(m.Blkio.IoServiceBytesRecursive,
			&v1.BlkIOEntry{Op: "Read", Major: io.GetMajor(), Minor: io.GetMinor(), Value: io.GetRbytes()},
			&v1.BlkIOEntry{Op: "Write", Major: io.GetMajor(), Minor: io.GetMinor(), Value: io.GetWbytes()})
		m.Blkio.IoServicedRecursive = append(m.Blkio.IoServicedRecursive,
			&v1.BlkIOEntry{Op: "Read", Major: io.GetMajor(), Minor: io.GetMinor(), Value: io.GetRios()},
			&v1.BlkIOEntry{Op: "Write", Major: io.GetMajor(), Minor: io.GetMinor(), Value: io.GetWios()})
	}
	for _, n := range r.GetNetwork() {
		m.Network = append(m.Network, &v1.NetworkStat{
			Name: n.GetName(), RxBytes: n.GetRxBytes(), RxPackets: n.GetRxPackets(), RxErrors: n.GetRxErrors(), RxDropped: n.GetRxDropped(),
			TxBytes: n.GetTxBytes(), TxPackets: n.GetTxPackets(), TxErrors: n.GetTxErrors(), TxDropped: n.GetTxDropped(),
		})
	}
	return m
}

// V2 is for a host with cgroup version 2. The CRI's working set is usage without
// inactive_file.
func V2(r *agentv1.StatsContainerResponse) *v2.Metrics {
	cpu, mem, stat := r.GetCpu(), r.GetMemory(), r.GetMemory().GetStat()
	m := &v2.Metrics{
		Pids: &v2.PidsStat{Current: r.GetPids().GetCurrent(), Limit: r.GetPids().GetLimit()},
		CPU: &v2.CPUStat{
			UsageUsec: cpu.GetUsageUsec(), UserUsec: cpu.GetUserUsec(), SystemUsec: cpu.GetSystemUsec(),
			NrPeriods: cpu.GetNrPeriods(), NrThrottled: cpu.GetNrThrottled(), ThrottledUsec: cpu.GetThrottledUsec(),
		},
		Memory: &v2.MemoryStat{
			Anon: stat["anon"], File: stat["file"], KernelStack: stat["kernel_stack"], Slab: stat["slab"], Sock: stat["sock"],
			Shmem: stat["shmem"], FileMapped: stat["file_mapped"], FileDirty: stat["file_dirty"], FileWriteback: stat["file_writeback"],
			AnonThp: stat["anon_thp"], InactiveAnon: stat["inactive_anon"], ActiveAnon: stat["active_anon"],
			InactiveFile: stat["inactive_file"], ActiveFile: stat["active_file"], Unevictable: stat["unevictable"],
			SlabReclaimable: stat["slab_reclaimable"], SlabUnreclaimable: stat["slab_unreclaimable"],
			Pgfault: stat["pgfault"], Pgmajfault: stat["pgmajfault"],
			Usage: mem.GetUsage(), UsageLimit: orUnlimited(mem.GetLimit(), math.MaxUint64), MaxUsage: mem.GetPeak(),
			SwapUsage: mem.GetSwapUsage(), SwapLimit: orUnlimited(mem.GetSwapLimit(), math.MaxUint64),
		},
		MemoryEvents: &v2.MemoryEvents{Oom: mem.GetOom(), OomKill: mem.GetOomKill()},
		Io:           &v2.IOStat{},
	}
	for _, io := range r.GetIo() {
		m.Io.Usage = append(m.Io.Usage, &v2.IOEntry{
			Major: io.GetMajor(), Minor: io.GetMinor(),
			Rbytes: io.GetRbytes(), Wbytes: io.GetWbytes(), Rios: io.GetRios(), Wios: io.GetWios(),
		})
	}
	for _, n := range r.GetNetwork() {
		m.Network = append(m.Network, &v2.NetworkStat{
			Name: n.GetName(), RxBytes: n.GetRxBytes(), RxPackets: n.GetRxPackets(), RxErrors: n.GetRxErrors(), RxDropped: n.GetRxDropped(),
			TxBytes: n.GetTxBytes(), TxPackets: n.GetTxPackets(), TxErrors: n.GetTxErrors(), TxDropped: n.GetTxDropped(),
		})
	}
	return m
}

// orUnlimited is the limit, or what stands for none.
func orUnlimited(limit, none uint64) uint64 {
	if limit == 0 {
		return none
	}
	return limit
}
