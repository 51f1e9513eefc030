package timeline_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

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

func TestMoments(t *testing.T) {
	var s timeline.Start
	timeline.Mark(s.In(t.Context()), "first output")
	timeline.Mark(context.Background(), "of nobody")
	ps := s.Phases()
	if len(ps) != 1 || ps[0].Dur != 0 || ps[0].Open || ps[0].Name != "first output" {
		t.Errorf("got %+v", ps)
	}
}

// TestToldIsCut: the guest's clock is the guest's word.
func TestToldIsCut(t *testing.T) {
	var s timeline.Start
	ctx, end := timeline.Begin(s.In(t.Context()), "wait for the guest")
	from := s.Phases()[0].Start
	for name, times := range map[string][2]time.Duration{
		"early":     {-time.Hour, -time.Minute}, // as of one that was restored
		"backwards": {time.Hour, -time.Hour},
		"late":      {time.Hour, 2 * time.Hour},
		"long":      {-time.Hour, time.Hour},
	} {
		timeline.Told(ctx, name, from.Add(times[0]), from.Add(times[1]))
	}
	timeline.Told(s.In(t.Context()), "part of nothing", from, time.Now())
	end()
	ps := s.Phases()
	if d := cmp.Diff("wait for the guest\n long\n", outline(ps)); d != "" {
		t.Fatalf("-want +got:\n%s", d)
	}
	if whole, part := ps[0], ps[1]; !part.Guest || part.Start.Before(whole.Start) || part.Dur > whole.Dur {
		t.Errorf("%+v is not within %+v", part, whole)
	}
}

// TestPrograms hands a time line from one program to the next, twice.
func TestPrograms(t *testing.T) {
	t.Setenv("KATA_TIMELINE", "")
	first := timeline.Program("first")
	ctx := first.In(t.Context())
	timeline.Step(ctx, "image")()
	ctx, _ = timeline.Begin(ctx, "start second")
	for _, name := range []string{"second", "third"} {
		env := timeline.Environ(ctx)
		if len(env) != 1 {
			t.Fatalf("environment %q", env)
		}
		key, value, _ := strings.Cut(env[0], "=")
		t.Setenv(key, value)
		s := timeline.Program(name)
		if text := os.Getenv(key); text != "" {
			t.Errorf("%s hands on what it was given: %s", name, text)
		}
		ctx = s.In(t.Context())
		timeline.Step(ctx, "work")()
		want := "first\n program start\n image\n start second\nsecond\n program start\n work\n"
		if name == "third" {
			want += "third\n program start\n work\n"
		}
		ps := s.Phases()
		if d := cmp.Diff(want, outline(ps)); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
		within(t, ps)
	}
	if env := timeline.Environ(context.Background()); env != nil {
		t.Errorf("environment of nobody: %q", env)
	}
}

// within tells of phases that are not within those that they are parts of, or out
// of order.
func within(t *testing.T, ps []timeline.Phase) {
	t.Helper()
	var above []timeline.Phase
	for i, p := range ps {
		if p.Depth > len(above) {
			t.Fatalf("%q has depth %d below %d others", p.Name, p.Depth, len(above))
		}
		above = append(above[:p.Depth], p)
		if p.Depth > 0 {
			whole := above[p.Depth-1]
			if p.Start.Before(whole.Start) || p.Start.Add(p.Dur).After(whole.Start.Add(whole.Dur)) {
				t.Errorf("%q (%v, %v) is not within %q (%v, %v)", p.Name, p.Start, p.Dur, whole.Name, whole.Start, whole.Dur)
			}
		}
		if i > 0 && p.Start.Before(ps[i-1].Start) && p.Depth >= ps[i-1].Depth {
			t.Errorf("%q is shown after %q, which began later", p.Name, ps[i-1].Name)
		}
	}
}

// FuzzProgram: a program begins with a sound time line, whatever it is given.
func FuzzProgram(f *testing.F) {
	f.Add(`[{"name":"kata","parent":-1,"start":1,"whole":true},{"name":"image","parent":0,"start":2,"end":3}]`)
	f.Add(`[{"name":"own part","parent":0}]`)
	f.Add(`[{"parent":-2},{"parent":1}]`)
	f.Add(`{`)
	f.Add(`[` + strings.Repeat(`{"parent":-1},`, 1000) + `{"parent":-1}]`)
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "\x00") {
			t.Skip("no variable of the environment has such a byte")
		}
		t.Setenv("KATA_TIMELINE", text)
		s := timeline.Program("this")
		timeline.Step(s.In(t.Context()), "work")()
		ps := s.Phases()
		if n := len(ps); n < 3 || n > 256 {
			t.Errorf("%d phases", n)
		}
		for _, p := range ps {
			if p.Dur < 0 || p.Depth < 0 {
				t.Errorf("%+v", p)
			}
		}
	})
}

func TestRecorderIsBounded(t *testing.T) {
	own := &timeline.Start{}
	r := timeline.NewRecorder("box", own)
	timeline.Step(own.In(t.Context()), "boot")()
	if r.Start("box", "") != own || timeline.NewRecorder("box", nil).Start("box", "") == nil {
		t.Error("the sandbox's container has a time line of its own")
	}
	for n := range 1000 {
		timeline.Step(r.Start("web", fmt.Sprint("probe", n)).In(t.Context()), "start exec")()
		r.Start(fmt.Sprint("empty", n), "")
	}
	timeline.Step(r.Start("last", "").In(t.Context()), "create container")()
	h := r.History()
	var lines []string
	for _, l := range h.Lines {
		lines = append(lines, strings.TrimSpace(l.Container+" "+l.Exec))
	}
	if n := len(lines); n < 10 || n > 100 || lines[0] != "" || lines[1] != "last" || lines[n-1] != "web probe999" {
		t.Errorf("%d are kept: %q", n, lines)
	}
	if h.Forgotten < 1900 {
		t.Errorf("%d are forgotten", h.Forgotten)
	}
}

func TestLogValue(t *testing.T) {
	var s timeline.Start
	boot, end := timeline.Begin(s.In(t.Context()), "boot")
	timeline.Mark(boot, "image")
	end()
	var b strings.Builder
	slog.New(slog.NewJSONHandler(&b, nil)).Info("start failed", "steps", &s)
	if text := b.String(); !regexp.MustCompile(`"steps":\["boot: [0-9.]+","boot/image: 0.0"\]`).MatchString(text) {
		t.Error(text)
	}
}
