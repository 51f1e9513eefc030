package timeline_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-efd44b36/kata/internal/timeline"
)

// outline has a line for each phase, indented by its depth, with "…" if it lasts.
func outline(ps []timeline.Phase) string {
	var b strings.Builder
	for _, p := range ps {
		b.WriteString(strings.Repeat(" ", p.Depth) + p.Name)
		if p.Open {
			b.WriteString("…")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestPhasesNestAsContextsDo(t *testing.T) {
	var s timeline.Start
	ctx := s.In(t.Context())
	boot, endBoot := timeline.Begin(ctx, "boot")
	timeline.Step(boot, "image")()
	vmm, endVMM := timeline.Begin(boot, "VMM")
	timeline.Step(vmm, "QEMU up")()
	timeline.Step(boot, "beside the VMM")()
	endVMM()
	endBoot()
	timeline.Step(ctx, "create")
	want := "boot\n image\n VMM\n  QEMU up\n beside the VMM\ncreate…\n"
	if d := cmp.Diff(want, outline(s.Phases())); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	for _, p := range s.Phases() {
		if p.Dur < 0 {
			t.Errorf("%s took %v", p.Name, p.Dur)
		}
	}
}

func TestNothingIsRecordedForNobody(t *testing.T) {
	ctx, end := timeline.Begin(context.Background(), "a step")
	end()
	timeline.Step(ctx, "another")()
}

func TestStepsAreBounded(t *testing.T) {
	var s timeline.Start
	ctx := s.In(t.Context())
	for range 100_000 {
		ctx, _ = timeline.Begin(ctx, "deeper")
	}
	if n := len(s.Phases()); n == 0 || n > 1000 {
		t.Errorf("%d phases", n)
	}
}

func BenchmarkStep(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		var s timeline.Start
		ctx := s.In(b.Context())
		for range 32 {
			timeline.Step(ctx, "step")()
		}
	}
}
