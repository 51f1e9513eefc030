package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/test/bench/result"
	"github.com/seed-efd44b36/kata/test/bench/subject"
)

func TestMeasurementsAreWhole(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range measurements() {
		if seen[m.Name] {
			t.Errorf("%s is there twice", m.Name)
		}
		seen[m.Name] = true
		if m.Title == "" || m.full == 0 || len(m.units) == 0 || m.measure == nil {
			t.Errorf("%s lacks a title, rounds, units or what measures", m.Name)
		}
		if !slices.ContainsFunc(subject.Names(), m.takes) {
			t.Errorf("%s takes no subject", m.Name)
		}
	}
}

// Each line of the budget is about something that is measured, of subjects that
// there are.
func TestBudgetIsMeasured(t *testing.T) {
	b, err := result.ReadBudget("budget.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range slices.Concat(b.Limits, b.Targets) {
		i := slices.IndexFunc(measurements(), func(m measurement) bool { return m.Name == l.Measurement })
		if i < 0 {
			t.Errorf("%s: there is no measurement %s", l.Name, l.Measurement)
			continue
		}
		m := measurements()[i]
		if !slices.ContainsFunc(m.units, func(u result.Unit) bool {
			return u.Name == l.Figure && (l.To != "" || u.Unit == l.Unit || u.Unit == "containers")
		}) {
			t.Errorf("%s: %s does not measure %s in %s", l.Name, m.Name, l.Figure, l.Unit)
		}
		if !slices.ContainsFunc(subject.Names(), func(n string) bool { return l.Holds(n) && m.takes(n) }) {
			t.Errorf("%s: %s does not measure a subject %s", l.Name, m.Name, l.Subject)
		}
		if l.To != "" && (!slices.Contains(subject.Names(), l.To) || !m.takes(l.To)) {
			t.Errorf("%s: %s does not measure %s", l.Name, m.Name, l.To)
		}
	}
}

func TestPlan(t *testing.T) {
	limit := 1.0
	b := result.Budget{Limits: []result.Line{{Name: "l", Measurement: "exec", Figure: "wall", Subject: "kata-*/cli", To: "runc/oci", AtMost: &limit}}}
	names := func(jobs []job) (list []string) {
		for _, j := range jobs {
			list = append(list, j.Name)
		}
		return list
	}
	jobs := options{check: true}.plan(b)
	if got, want := names(jobs), []string{"exec"}; !slices.Equal(got, want) {
		t.Fatalf("check: got %v, want %v", got, want)
	}
	for name, want := range map[string]bool{"kata-cold/cli": true, "runc/oci": true, "kata-cold/ctr": false, "crun/oci": false} {
		if got := jobs[0].wants(name); got != want {
			t.Errorf("check wants %s: got %v, want %v", name, got, want)
		}
	}
	if n := (options{check: true}).rounds(jobs[0].measurement); n < 5 {
		t.Errorf("check: %d rounds of execs", n)
	}
	got := names(options{only: []string{"parallel", "exec"}}.plan(b))
	if want := []string{"parallel-1", "parallel-10", "parallel-20", "parallel-50", "exec"}; !slices.Equal(got, want) {
		t.Errorf("only: got %v, want %v", got, want)
	}
	if quick := names(options{quick: true}.plan(b)); slices.Contains(quick, "parallel-50") || !slices.Contains(quick, "start") {
		t.Errorf("quick: got %v", quick)
	}
}

func TestOptions(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    options
		ok   bool
	}{
		{"none", options{}, true},
		{"runtime", options{subjects: []string{"runc"}}, true},
		{"pattern", options{subjects: []string{"kata-*/ctr"}}, true},
		{"no such runtime", options{subjects: []string{"rkt"}}, false},
		{"no such measurement", options{only: []string{"flight"}}, false},
		{"check of some", options{check: true, only: []string{"exec"}}, false},
	} {
		if err := tc.o.validate(); (err == nil) != tc.ok {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}
	o := options{subjects: []string{"runc", "kata-*/ctr"}}
	for name, want := range map[string]bool{"runc/oci": true, "kata-cold/ctr": true, "kata-cold/oci": false, "qemu": false} {
		if got := o.wants(name); got != want {
			t.Errorf("wants %s: got %v, want %v", name, got, want)
		}
	}
}

func sample(r *result.Report, measurement, subject string, u result.Unit, values ...float64) {
	for i, v := range values {
		r.Add(measurement, u, subject, result.Sample{Round: i, Value: v})
	}
}

// A report goes to page, data and pictures, and the page shows the pictures that
// there are; what an older run has left goes.
func TestWrite(t *testing.T) {
	r := &result.Report{Date: "2026-01-02"}
	for _, name := range []string{"start", "parallel-1", "parallel-10"} {
		i := slices.IndexFunc(measurements(), func(m measurement) bool { return m.Name == name })
		r.Sections = append(r.Sections, measurements()[i].Section)
		for _, s := range []string{"kata-cold/ctr", "runc/ctr"} {
			sample(r, name, s, result.Unit{Name: "wall", What: "all", Unit: "s"}, 1, 2, 3)
			sample(r, name, s, result.Unit{Name: "failed", What: "none", Unit: ""}, 0)
		}
	}
	r.Complete(subject.Reference, subject.Order)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "old.svg"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := write(io.Discard, dir, r, result.Budget{}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if want := []string{"measured.json", "measured.md", "parallel-wall.svg", "start-wall.svg"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	page, err := os.ReadFile(filepath.Join(dir, "measured.md"))
	if err != nil || strings.Count(string(page), ".svg)") != 2 {
		t.Errorf("%v; want two pictures in\n%s", err, page)
	}
	picture, err := os.ReadFile(filepath.Join(dir, "parallel-wall.svg"))
	if err != nil || !strings.Contains(string(picture), "10 at once") {
		t.Errorf("%v; want the groups in\n%s", err, picture)
	}
	var out bytes.Buffer
	if err := write(&out, "", r, result.Budget{}); err != nil || strings.Contains(out.String(), ".svg") {
		t.Errorf("%v; want a page without pictures, got\n%s", err, out.String())
	}
}
