package figures

import (
	"strings"
	"testing"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
)

func TestStats(t *testing.T) {
	few := &agentv1.StatsContainerResponse{Network: []*agentv1.NetworkStats{{Name: "eth0\x1b[2J and more"}}}
	if Stats(few) || strings.ContainsRune(few.GetNetwork()[0].GetName(), 0x1b) {
		t.Errorf("%v", few)
	}
	many := &agentv1.StatsContainerResponse{}
	for range Most + 1 {
		many.Io = append(many.Io, &agentv1.IOStats{})
	}
	if !Stats(many) || len(many.GetIo()) != Most {
		t.Errorf("%d disks", len(many.GetIo()))
	}
}

func TestProcesses(t *testing.T) {
	list := []*agentv1.Process{
		{Exec: "ours", Command: strings.Repeat("x", 2*maxCommand), State: "S\nroot"},
		{Exec: "theirs"},
	}
	Processes(list, func(exec string) bool { return exec == "ours" })
	if p := list[0]; p.GetExec() != "ours" || len(p.GetCommand()) > maxCommand+len("…") || len(p.GetState()) > 1+len("…") || strings.Contains(p.GetState(), "\n") {
		t.Errorf("%.100v", p)
	}
	if list[1].GetExec() != "" {
		t.Errorf("an exec that nobody asked for: %v", list[1])
	}
}
