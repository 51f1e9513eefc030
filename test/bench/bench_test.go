package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestTinyProgramRuns(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("not Linux")
	}
	path := filepath.Join(t.TempDir(), "hello")
	if err := os.WriteFile(path, program("hello\n", exit), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), path).CombinedOutput()
	if err != nil || string(out) != "hello\n" {
		t.Errorf("got %q, %v; want hello", out, err)
	}
}

func TestArchiveIsReadable(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("cpio is missing (apt-get install cpio)")
	}
	m, err := newBareMachine(t.TempDir(), "kernel", "tcg")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(m.initrd)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(t.Context(), cpio, "-t", "--quiet")
	cmd.Stdin = f
	out, err := cmd.CombinedOutput()
	if got, want := string(out), "dev\ndev/console\ninit\n"; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		in   samples
		want float64
	}{
		{nil, 0},
		{samples{3}, 3},
		{samples{9, 1, 2}, 2},
		{samples{4, 1, 2, 9}, 3},
	} {
		if got := tc.in.median(); got != tc.want {
			t.Errorf("median of %v: got %v, want %v", tc.in, got, tc.want)
		}
	}
}

func TestBudget(t *testing.T) {
	limits, err := readBudget("budget.json")
	if err != nil {
		t.Fatal(err)
	}
	good := &result{}
	for _, l := range limits {
		if order(l.Name) < 0 {
			t.Errorf("limit %s has no place in the table", l.Name)
		}
		good.Figures = append(good.Figures, newFigure(l.Name, l.Name, "x", samples{l.Max + l.Min}, nil))
	}
	if err := exceeded(good, limits); err != nil {
		t.Errorf("figures at their limits: %v", err)
	}
	within := []limit{{Name: "a", Max: 10, Tolerance: 0.5}, {Name: "b", Min: 10, Tolerance: 0.5}, {Name: "c", Max: 1}}
	r := &result{Figures: []figure{newFigure("a", "", "", samples{15}, nil), newFigure("b", "", "", samples{4}, nil)}}
	err = exceeded(r, within)
	if err == nil || strings.Contains(err.Error(), "a:") || !strings.Contains(err.Error(), "b:") || !strings.Contains(err.Error(), "c: not measured") {
		t.Errorf("got %v, want b over its limit and c not measured", err)
	}
}
