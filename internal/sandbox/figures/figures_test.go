package figures

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
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

func TestExit(t *testing.T) {
	made, now := time.Unix(100, 0), time.Unix(200, 0)
	at := func(seconds int64) int64 { return time.Unix(seconds, 0).UnixNano() }
	const oom = "killed for exceeding its memory limit (OOM)"
	for name, tt := range map[string]struct {
		told *agentv1.WaitProcessResponse
		want report.Exit
	}{
		"plain":           {&agentv1.WaitProcessResponse{ExitCode: 3, ExitedAt: at(150)}, report.Exit{Code: 3, At: time.Unix(150, 0)}},
		"impossible code": {&agentv1.WaitProcessResponse{ExitCode: 1 << 31, ExitedAt: at(150)}, report.Exit{Code: 255, At: time.Unix(150, 0)}},
		"future":          {&agentv1.WaitProcessResponse{ExitedAt: at(201)}, report.Exit{At: now}},
		"too early":       {&agentv1.WaitProcessResponse{ExitedAt: at(99)}, report.Exit{At: now}},
		"for want of memory": {
			&agentv1.WaitProcessResponse{ExitCode: 137, ExitedAt: at(150), OomKilled: true},
			report.Exit{Code: 137, At: time.Unix(150, 0), OOMKilled: true, Reason: oom},
		},
		"another was killed": {
			&agentv1.WaitProcessResponse{ExitCode: 1, ExitedAt: at(150), OomKilled: true},
			report.Exit{Code: 1, At: time.Unix(150, 0), OOMKilled: true},
		},
	} {
		if d := cmp.Diff(tt.want, Exit(tt.told, made, now)); d != "" {
			t.Errorf("%s: -want +got:\n%s", name, d)
		}
	}
}
