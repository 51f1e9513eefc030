// Package usage writes what a guest tells of a container's resources and processes
// in the formats of runc's `events` and `ps`. It is pure; the figures are the guest's
// word, of which the sandbox has made something fit to be shown.
package usage

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"text/tabwriter"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"google.golang.org/protobuf/proto"
)

// unlimited is what the memory controller of cgroup version 1 reports for no limit.
const unlimited = math.MaxInt64 &^ 4095

const nanosPerMicro = 1000

// The parts of an event, named as runc names them.
type (
	event struct {
		Type string `json:"type"`
		ID   string `json:"id"`
		Data stats  `json:"data"`
	}
	stats struct {
		CPU     cpu      `json:"cpu"`
		Memory  memory   `json:"memory"`
		Pids    pids     `json:"pids"`
		Blkio   blkio    `json:"blkio"`
		Hugetlb struct{} `json:"hugetlb"`
		RDT     struct{} `json:"intel_rdt"`
		NICs    []nic    `json:"network_interfaces"`
	}
	cpu struct {
		Usage      cpuUsage `json:"usage"`
		Throttling throttle `json:"throttling"`
	}
	cpuUsage struct {
		Total  uint64 `json:"total"`
		Kernel uint64 `json:"kernel"`
		User   uint64 `json:"user"`
	}
	throttle struct {
		Periods   uint64 `json:"periods,omitempty"`
		Throttled uint64 `json:"throttledPeriods,omitempty"`
		Time      uint64 `json:"throttledTime,omitempty"`
	}
	memory struct {
		Cache uint64            `json:"cache"`
		Usage memoryEntry       `json:"usage"`
		Swap  memoryEntry       `json:"swap"`
		Raw   map[string]uint64 `json:"raw,omitempty"`
	}
	memoryEntry struct {
		Limit   uint64 `json:"limit"`
		Usage   uint64 `json:"usage"`
		Max     uint64 `json:"max"`
		Failcnt uint64 `json:"failcnt"`
	}
	pids struct {
		Current uint64 `json:"current"`
		Limit   uint64 `json:"limit,omitempty"`
	}
	blkio struct {
		Bytes    []blkioEntry `json:"ioServiceBytesRecursive,omitempty"`
		Serviced []blkioEntry `json:"ioServicedRecursive,omitempty"`
	}
	blkioEntry struct {
		Major uint64 `json:"major"`
		Minor uint64 `json:"minor"`
		Op    string `json:"op"`
		Value uint64 `json:"value"`
	}
	nic struct {
		Name      string `json:"name"`
		RxBytes   uint64 `json:"rx_bytes"`
		RxPackets uint64 `json:"rx_packets"`
		RxErrors  uint64 `json:"rx_errors"`
		RxDropped uint64 `json:"rx_dropped"`
		TxBytes   uint64 `json:"tx_bytes"`
		TxPackets uint64 `json:"tx_packets"`
		TxErrors  uint64 `json:"tx_errors"`
		TxDropped uint64 `json:"tx_dropped"`
	}
)

// WriteStats writes an event with the figures of a StatsContainerResponse of the
// agent's protocol.
func WriteStats(w io.Writer, id string, encoded []byte) error {
	var r agentv1.StatsContainerResponse
	if err := proto.Unmarshal(encoded, &r); err != nil {
		return fmt.Errorf("stats of container %s: %w", id, err)
	}
	c, mem, stat := r.GetCpu(), r.GetMemory(), r.GetMemory().GetStat()
	st := stats{
		CPU: cpu{
			Usage:      cpuUsage{Total: c.GetUsageUsec() * nanosPerMicro, Kernel: c.GetSystemUsec() * nanosPerMicro, User: c.GetUserUsec() * nanosPerMicro},
			Throttling: throttle{Periods: c.GetNrPeriods(), Throttled: c.GetNrThrottled(), Time: c.GetThrottledUsec() * nanosPerMicro},
		},
		Memory: memory{
			Cache: stat["file"],
			Usage: memoryEntry{Limit: limit(mem.GetLimit()), Usage: mem.GetUsage(), Max: mem.GetPeak(), Failcnt: mem.GetOom()},
			Swap:  memoryEntry{Limit: limit(mem.GetSwapLimit()), Usage: mem.GetUsage() + mem.GetSwapUsage()},
			Raw:   stat,
		},
		Pids: pids{Current: r.GetPids().GetCurrent(), Limit: r.GetPids().GetLimit()},
		NICs: []nic{},
	}
	for _, d := range r.GetIo() {
		major, minor := d.GetMajor(), d.GetMinor()
		st.Blkio.Bytes = append(st.Blkio.Bytes, blkioEntry{major, minor, "Read", d.GetRbytes()}, blkioEntry{major, minor, "Write", d.GetWbytes()})
		st.Blkio.Serviced = append(st.Blkio.Serviced, blkioEntry{major, minor, "Read", d.GetRios()}, blkioEntry{major, minor, "Write", d.GetWios()})
	}
	for _, n := range r.GetNetwork() {
		st.NICs = append(st.NICs, nic{
			n.GetName(), n.GetRxBytes(), n.GetRxPackets(), n.GetRxErrors(), n.GetRxDropped(),
			n.GetTxBytes(), n.GetTxPackets(), n.GetTxErrors(), n.GetTxDropped(),
		})
	}
	return json.NewEncoder(w).Encode(event{Type: "stats", ID: id, Data: st})
}

func limit(v uint64) uint64 {
	if v == 0 {
		return unlimited
	}
	return v
}

// WriteProcesses writes a table of the processes of a ListProcessesResponse of the
// agent's protocol. Their numbers are those of the guest.
func WriteProcesses(w io.Writer, encoded []byte) error {
	var r agentv1.ListProcessesResponse
	if err := proto.Unmarshal(encoded, &r); err != nil {
		return fmt.Errorf("processes: %w", err)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "UID\tPID\tPPID\tS\tCMD")
	for _, p := range r.GetProcesses() {
		fmt.Fprintf(t, "%d\t%d\t%d\t%s\t%s\n", p.GetUid(), p.GetPid(), p.GetPpid(), p.GetState(), p.GetCommand())
	}
	return t.Flush()
}
