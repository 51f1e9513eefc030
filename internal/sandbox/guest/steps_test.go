package guest

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"google.golang.org/protobuf/proto"
)

// told is a step of which the guest tells the given parts, ended.
func told(t testing.TB, took time.Duration, steps []*agentv1.Step) []timeline.Phase {
	t.Helper()
	var s timeline.Start
	ctx, end := timeline.Begin(s.In(t.Context()), "call")
	began := time.Now()
	for time.Since(began) < took {
		runtime.Gosched() // the parts have to find room in it
	}
	tellSteps(ctx, began, time.Since(began), steps)
	end()
	return s.Phases()
}

func TestSteps(t *testing.T) {
	var outline []string
	for _, p := range told(t, 2*time.Millisecond, []*agentv1.Step{
		{Name: "agent", DurationUs: 1500},
		{Name: "a", Depth: 1, StartUs: 100, DurationUs: 500},
		{Name: "b", Depth: 2, StartUs: 200, DurationUs: 300},
		{Name: "c", Depth: 1, StartUs: 700, DurationUs: 10_000_000},
		{Name: "in no time", Depth: 1, StartUs: 1400},
		{Name: "later", StartUs: 60_000_000, DurationUs: 1},
	}) {
		outline = append(outline, strings.Repeat(" ", p.Depth)+p.Name)
	}
	if d := cmp.Diff([]string{"call", " agent", "  a", "   b", "  c"}, outline); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// FuzzSteps: whatever a guest tells of its steps, they are within the call, and few.
func FuzzSteps(f *testing.F) {
	for _, steps := range [][]*agentv1.Step{
		{{Name: "agent", DurationUs: 5}, {Name: "a\x1b[2J\n", Depth: 1, StartUs: 1, DurationUs: 2}},
		{{Depth: 1<<32 - 1, StartUs: 1<<64 - 1, DurationUs: 1<<64 - 1}, {}},
		{{DurationUs: 1 << 63}, {Name: strings.Repeat("x", 1000), Depth: 7, DurationUs: 1}},
		make([]*agentv1.Step, 1000),
	} {
		b, err := proto.Marshal(&agentv1.CreateExecResponse{Steps: steps})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		var r agentv1.CreateExecResponse
		if proto.Unmarshal(answer, &r) != nil {
			return
		}
		ps := told(t, 0, r.GetSteps())
		if len(ps) > 1+maxSteps {
			t.Errorf("%d phases", len(ps))
		}
		for _, p := range ps[1:] {
			if p.Start.Before(ps[0].Start) || p.Start.Add(p.Dur).After(ps[0].Start.Add(ps[0].Dur)) || !p.Guest || p.Depth == 0 {
				t.Errorf("%+v is not within %+v", p, ps[0])
			}
			if len(p.Name) > maxStepName+len("…") || strings.ContainsAny(p.Name, "\x1b\n\x00") {
				t.Errorf("name %q", p.Name)
			}
		}
	})
}
