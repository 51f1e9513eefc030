package result

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
)

func near(a, b float64) bool { return math.Abs(a-b) < 1e-9 }

func TestSummarize(t *testing.T) {
	twenty := make([]float64, 20)
	for i := range twenty {
		twenty[i] = float64(20 - i)
	}
	for _, tc := range []struct {
		name        string
		in          []float64
		median, p95 float64
		notch       float64
	}{
		{"none", nil, 0, 0, 0},
		{"one", []float64{3}, 3, 3, 0},
		{"odd", []float64{9, 1, 2}, 2, 9, 1.57 * 4 / math.Sqrt(3)},
		{"even", []float64{4, 1, 2, 9}, 3, 9, 1.57 * 3.5 / 2},
		{"same", []float64{5, 5, 5, 5}, 5, 5, 0},
		{"twenty", twenty, 10.5, 19, 1.57 * 9.5 / math.Sqrt(20)},
	} {
		got := Summarize(tc.in)
		if !near(got.Median, tc.median) || !near(got.P95, tc.p95) || !near(got.Notch, tc.notch) || got.N != len(tc.in) {
			t.Errorf("%s: got %+v, want median %v, p95 %v, notch %v", tc.name, got, tc.median, tc.p95, tc.notch)
		}
	}
}

// A ratio is one of neighbours: rounds in which one is missing do not count, and
// a slow minute does not matter.
func TestRatiosAreOfTheSameRound(t *testing.T) {
	r := &Report{}
	u := Unit{Name: "wall", Unit: "s"}
	for i, v := range []float64{1, 10, 100} {
		r.Add("m", u, "runc/ctr", Sample{i, v})
		if i != 1 {
			r.Add("m", u, "kata/ctr", Sample{i, 3 * v})
		}
	}
	r.Complete(func(s string) string { return "runc/ctr" }, strings.Compare)
	f := r.Figure("m", "wall", "kata/ctr")
	if f == nil || !near(f.Ratio, 3) || f.To != "runc/ctr" || f.Stats.N != 2 {
		t.Fatalf("got %+v, want three times runc in two rounds", f)
	}
	if own := r.Figure("m", "wall", "runc/ctr"); own.To != "" {
		t.Errorf("runc is compared with %s", own.To)
	}
	r.Forget("m", []string{"kata/ctr"})
	if r.Figure("m", "wall", "kata/ctr") != nil || r.Figure("m", "wall", "runc/ctr") == nil {
		t.Error("not what was to be forgotten")
	}
}

func TestVerdicts(t *testing.T) {
	u := Unit{Name: "wall", Unit: "s"}
	line := Line{Name: "l", Measurement: "m", Figure: "wall", Subject: "kata-*", Why: "w", AtMost: new(10.0), Tolerance: 0.1}
	least := line
	least.AtMost, least.AtLeast = nil, new(10.0)
	ratio := line
	ratio.To, ratio.AtMost = "runc", new(2.0)
	for _, tc := range []struct {
		name        string
		line        Line
		values      []float64
		met, broken bool
	}{
		{"at the limit", line, []float64{10}, true, false},
		{"within the tolerance", line, []float64{10.9}, false, false},
		{"beyond it", line, []float64{11.1}, false, true},
		{"beyond it by chance", line, []float64{5, 12, 30}, false, false},
		{"beyond it each time", line, []float64{20, 21, 22, 20, 21, 22}, false, true},
		{"enough", least, []float64{10}, true, false},
		{"nearly enough", least, []float64{9.1}, false, false},
		{"not enough", least, []float64{8}, false, true},
		{"not enough by chance", least, []float64{2, 8, 30}, false, false},
		{"ratio", ratio, []float64{8}, true, false},
		{"ratio beyond", ratio, []float64{9}, false, true},
	} {
		r := &Report{}
		for i, v := range tc.values {
			r.Add("m", u, "kata-cold", Sample{i, v})
			r.Add("m", u, "runc", Sample{i, 4})
		}
		list := r.Verdicts(tc.line)
		if len(list) != 1 || list[0].Subject != "kata-cold" || list[0].Met != tc.met || list[0].Broken != tc.broken {
			t.Errorf("%s: got %+v, want met %v, broken %v", tc.name, list, tc.met, tc.broken)
		}
		if got := len(r.Broken(Budget{Limits: []Line{tc.line}, Targets: []Line{line}})) > 0; got != tc.broken {
			t.Errorf("%s: the limit is broken: %v", tc.name, got)
		}
	}
}

// What was not measured is no success.
func TestNotMeasuredIsBroken(t *testing.T) {
	line := Line{Name: "l", Measurement: "m", Figure: "wall", Subject: "kata-*", To: "runc", AtMost: new(1.0)}
	r := &Report{}
	check := func(when string) {
		t.Helper()
		broken := r.Broken(Budget{Limits: []Line{line}})
		if len(broken) != 1 || !strings.Contains(broken[0].Err().Error(), "not measured") {
			t.Errorf("%s: got %+v", when, broken)
		}
	}
	check("nothing")
	r.Add("m", Unit{Name: "wall"}, "kata-cold", Sample{0, 1})
	check("no runc")
	r.Add("m", Unit{Name: "wall"}, "runc", Sample{1, 1})
	check("no round of both")
}

// What failed once is due for one more try, even if it left a figure; after it only
// the new figures count.
func TestDoubtful(t *testing.T) {
	line := Line{Name: "l", Measurement: "m", Figure: "wall", Subject: "kata-*", To: "runc", AtMost: new(2.0)}
	b := Budget{Limits: []Line{line}}
	for subject, want := range map[string]int{"kata-cold": 1, "runc": 1, "crun": 0} {
		r := &Report{Skipped: []Skip{{Subject: subject, Measurement: "m", Why: "bad luck", Failed: true}}}
		r.Add("m", Unit{Name: "wall"}, "kata-cold", Sample{0, 1})
		r.Add("m", Unit{Name: "wall"}, "runc", Sample{0, 1})
		if got := r.Doubtful(b); len(got) != want || len(r.Broken(b)) != 0 {
			t.Errorf("%s failed: got %v, want %d in doubt", subject, got, want)
		}
		r.Forget("m", []string{subject})
		if len(r.Skipped) != 0 {
			t.Errorf("%s: still left out: %v", subject, r.Skipped)
		}
	}
}

func TestParseBudget(t *testing.T) {
	const good = `{"name":"a","measurement":"m","figure":"f","subject":"s","at_most":0,"why":"w"}`
	for _, tc := range []struct{ name, text, want string }{
		{"good", `{"limits":[` + good + `]}`, ""},
		{"twice", `{"limits":[` + good + `],"targets":[` + good + `]}`, "twice"},
		{"no bound", `{"limits":[{"name":"a","measurement":"m","figure":"f","subject":"s","why":"w"}]}`, "at_least"},
		{"both bounds", `{"limits":[{"name":"a","measurement":"m","figure":"f","subject":"s","at_most":1,"at_least":1,"why":"w"}]}`, "at_least"},
		{"pattern", `{"limits":[{"name":"a","measurement":"m","figure":"f","subject":"[","at_most":1,"why":"w"}]}`, "subject"},
		{"tolerance", `{"limits":[{"name":"a","measurement":"m","figure":"f","subject":"s","at_most":1,"tolerance":1,"why":"w"}]}`, "tolerance"},
		{"no reason", `{"limits":[{"name":"a","measurement":"m","figure":"f","subject":"s","at_most":1}]}`, "why"},
		{"unknown key", `{"limit":[]}`, "unknown field"},
	} {
		_, err := parseBudget([]byte(tc.text))
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
	}
}

func TestBound(t *testing.T) {
	for want, l := range map[string]Line{
		"≤ 1.3 × qemu": {To: "qemu", AtMost: new(1.3)},
		"≥ 300 MB/s":   {Unit: "MB/s", AtLeast: new(300.0)},
		"≤ 0 pods":     {Unit: "pods", AtMost: new(0.0)},
	} {
		if got := l.Bound(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestMarkdown(t *testing.T) {
	r := &Report{
		Date: "2026-01-02", Machine: []string{"abacus"}, LoadStart: "0.1", LoadEnd: "0.2",
		Sections: []Section{{Name: "start", Title: "Start"}, {Name: "p-1", Title: "1 at once", Family: "Many"}, {Name: "p-2", Title: "2 at once", Family: "Many"}, {Name: "none", Title: "Nothing"}},
		Skipped:  []Skip{{Subject: "kata-warm", Why: "not there yet"}, {Subject: "kata-cold/ctr", Why: "it burns", Failed: true}},
	}
	for i := range 10 {
		r.Add("start", Unit{Name: "wall", What: "all", Unit: "s"}, "kata-cold/ctr", Sample{i, 2})
		r.Add("start", Unit{Name: "wall", What: "all", Unit: "s"}, "runc/ctr", Sample{i, 1})
		r.Add("start", Unit{Name: "odd", What: "odd", Unit: "s"}, "kata-cold/ctr", Sample{i, 7})
	}
	r.Add("p-1", Unit{Name: "wall", What: "all", Unit: "s"}, "runc/ctr", Sample{0, 1})
	r.Add("p-2", Unit{Name: "wall", What: "all", Unit: "s"}, "runc/ctr", Sample{0, 3})
	r.Complete(func(string) string { return "runc/ctr" }, strings.Compare)
	line := func(name string, most float64) Line {
		return Line{Name: name, Measurement: "start", Figure: "wall", Subject: "kata-cold/ctr", AtMost: &most, Unit: "s", Why: "so"}
	}
	b := Budget{
		Limits:  []Line{line("l", 1), line("m", 3)},
		Targets: []Line{line("t", 1), {Name: "u", Measurement: "start", Figure: "wall", Subject: "kata-warm/ctr", AtMost: new(1.0), Why: "so"}},
	}
	got := r.Markdown(b, func(s Section) []string { return []string{s.Name + ".svg"} })
	for _, want := range []string{
		"abacus", "Load 0.1 at the start, 0.2 at the end",
		"| t, so | kata-cold/ctr | ≤ 1 s | 2 s | **missed** |",
		"| u, so | kata-warm/ctr | ≤ 1 |  | not measured |",
		"| l, so | kata-cold/ctr | ≤ 1 s | 2 s | **broken** |",
		"| m, so | kata-cold/ctr | ≤ 3 s | 2 s | met |",
		"|  | n | all, s | p95 | × runc | odd, s | p95 |\n",
		"| kata-cold/ctr | 10 | 2 | 2 | 2 | 7 | 7 |\n",
		"| runc/ctr | 10 | 1 | 1 |  |  |  |\n",
		"![start](start.svg)", "![p-1](p-1.svg)", "### 2 at once",
		"- kata-warm: not there yet", "- kata-cold/ctr: **failed**: it burns",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	for _, not := range []string{"Nothing", "p-2.svg"} {
		if strings.Contains(got, not) {
			t.Errorf("%q in\n%s", not, got)
		}
	}
	data, err := r.JSON()
	var back Report
	if err != nil || json.Unmarshal(data, &back) != nil || len(back.Figures) != len(r.Figures) {
		t.Errorf("JSON: %v, %s", err, data)
	}
}

// An upright table has a line for each figure, also for one that a subject lacks.
func TestUpright(t *testing.T) {
	r := &Report{Sections: []Section{{Name: "verbs", Title: "Verbs", Upright: true}}}
	for _, s := range []string{"crun", "kata", "runc"} {
		r.Add("verbs", Unit{Name: "a", What: "a", Unit: "ms"}, s, Sample{0, 10})
		if s != "crun" {
			r.Add("verbs", Unit{Name: "b", What: "b", Unit: "ms"}, s, Sample{0, 30})
		}
	}
	r.Complete(func(string) string { return "runc" }, strings.Compare)
	got := r.Markdown(Budget{}, func(Section) []string { return nil })
	for _, want := range []string{
		"|  | n | crun | × runc | kata | × runc | runc |\n|---|---|---|---|---|---|---|\n",
		"| a, ms | 1 | 10 | 1 | 10 | 1 | 10 |\n",
		"| b, ms | 1 |  |  | 30 | 1 | 30 |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestNumber(t *testing.T) {
	for want, v := range map[string]float64{"0": 0, "0.012": 0.0123, "1.30": 1.3, "3": 3, "12.3": 12.34, "50": 50, "1234": 1234.4} {
		if got := Number(v); got != want {
			t.Errorf("%v: got %s, want %s", v, got, want)
		}
	}
}
