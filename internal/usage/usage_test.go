package usage

import (
	"strings"
	"testing"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"google.golang.org/protobuf/proto"
)

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStats(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	err := WriteStats(&out, "c", encode(t, &agentv1.StatsContainerResponse{
		Cpu:     &agentv1.CPUStats{UsageUsec: 3, SystemUsec: 1, UserUsec: 2},
		Memory:  &agentv1.MemoryStats{Usage: 10, Peak: 12, SwapUsage: 1, SwapLimit: 20, Stat: map[string]uint64{"file": 4}},
		Pids:    &agentv1.PidsStats{Current: 1},
		Io:      []*agentv1.IOStats{{Major: 8, Rbytes: 5, Wbytes: 6, Rios: 1, Wios: 2}},
		Network: []*agentv1.NetworkStats{{Name: "eth0", RxBytes: 7}},
	}))
	want := `{"type":"stats","id":"c","data":{"cpu":{"usage":{"total":3000,"kernel":1000,"user":2000},"throttling":{}},` +
		`"memory":{"cache":4,"usage":{"limit":9223372036854771712,"usage":10,"max":12,"failcnt":0},"swap":{"limit":20,"usage":11,"max":0,"failcnt":0},"raw":{"file":4}},` +
		`"pids":{"current":1},"blkio":{"ioServiceBytesRecursive":[{"major":8,"minor":0,"op":"Read","value":5},{"major":8,"minor":0,"op":"Write","value":6}],` +
		`"ioServicedRecursive":[{"major":8,"minor":0,"op":"Read","value":1},{"major":8,"minor":0,"op":"Write","value":2}]},"hugetlb":{},"intel_rdt":{},` +
		`"network_interfaces":[{"name":"eth0","rx_bytes":7,"rx_packets":0,"rx_errors":0,"rx_dropped":0,"tx_bytes":0,"tx_packets":0,"tx_errors":0,"tx_dropped":0}]}}` + "\n"
	if err != nil || out.String() != want {
		t.Errorf("%v, got:\n%s\nwant:\n%s", err, out.String(), want)
	}
}

func TestProcesses(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	err := WriteProcesses(&out, encode(t, &agentv1.ListProcessesResponse{Processes: []*agentv1.Process{
		{Pid: 70, Ppid: 1, Uid: 1000, State: "S", Command: "sleep 1000"}, {Pid: 7, Ppid: 70, State: "R", Command: "ps"},
	}}))
	want := "UID   PID  PPID  S  CMD\n1000  70   1     S  sleep 1000\n0     7    70    R  ps\n"
	if err != nil || out.String() != want {
		t.Errorf("%v, got:\n%s\nwant:\n%s", err, out.String(), want)
	}
}

func TestNonsense(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	if err := WriteStats(&out, "c", []byte{1}); err == nil {
		t.Error("stats: no error")
	}
	if err := WriteProcesses(&out, []byte{1}); err == nil {
		t.Error("processes: no error")
	}
}
