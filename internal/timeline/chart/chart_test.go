package chart_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/seed-efd44b36/kata/internal/timeline/chart"
)

var began = time.Date(2026, 11, 23, 7, 39, 3, 319_000_000, time.UTC)

// phase is one of so many milliseconds.
func phase(depth int, name string, start, dur float64) timeline.Phase {
	d := func(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }
	return timeline.Phase{Name: name, Depth: depth, Start: began.Add(d(start)), Dur: d(dur)}
}

func example() chart.Chart {
	kernel := phase(3, "kernel", 300, 500)
	kernel.Guest = true
	driver := phase(4, "driver", 400, 100)
	driver.Guest = true
	create := phase(1, "create container", 900, 100)
	create.Open = true
	return chart.Chart{Sandbox: "box", History: timeline.History{Forgotten: 2, Lines: []timeline.Line{
		{Phases: []timeline.Phase{
			phase(0, "kata", 0, 10.25),
			phase(0, "kata-proxy", 10.25, 989.75), phase(1, "boot", 20, 880), phase(2, "VMM", 30, 800), kernel, driver,
			create, phase(1, "first output", 1100, 0), phase(1, "later", 60_000, 0),
		}},
		{Container: "web", Phases: []timeline.Phase{phase(0, "start container", 5000, 20)}},
		{Container: "web", Exec: "probe", Phases: []timeline.Phase{phase(0, "start exec", 7000, 20)}},
		{Container: "other", Phases: []timeline.Phase{phase(0, "start container", 9000, 20)}},
	}}}
}

func write(t *testing.T, c chart.Chart, f chart.Format) string {
	t.Helper()
	var b bytes.Buffer
	if err := c.Write(&b, f); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestTable(t *testing.T) {
	want := `sandbox box, started 2026-11-23 07:39:03.319 UTC
  start ms    for ms  phase
       0.0      10.2  kata                           =
      10.2     989.8  kata-proxy                     ====================================
      20.0     880.0    boot                         =================================
      30.0     800.0      VMM                         =============================
     300.0     500.0        kernel (says the guest)            ===================
     400.0     100.0          driver                               ====
     900.0     100.0    create container (lasts)                                     ====
    1100.0              first output                                                        |
   60000.0              later                                                                >

container web, 5s after the sandbox
  start ms    for ms  phase
       0.0      20.0  start container  ========================================

exec probe in container web, 7s after the sandbox
  start ms    for ms  phase
       0.0      20.0  start exec  ========================================

container other, 9s after the sandbox
  start ms    for ms  phase
       0.0      20.0  start container  ========================================

2 older starts of containers and execs are not kept
`
	if d := cmp.Diff(want, write(t, example(), chart.Table)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestOf(t *testing.T) {
	for container, want := range map[string][]string{"web": {"web ", "web probe"}, "box": {" "}, "none": nil} {
		var got []string
		for _, l := range example().Of(container).Lines {
			got = append(got, l.Container+" "+l.Exec)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: -want +got:\n%s", container, d)
		}
	}
}

func TestJSON(t *testing.T) {
	want := `{
  "version": 1,
  "sandbox": "box",
  "forgotten": 0,
  "starts": [
    {
      "container": "web",
      "exec": "probe",
      "began": "2026-11-23T07:39:03.319Z",
      "duration_ms": 10.25,
      "phases": [
        {
          "name": "start exec",
          "depth": 0,
          "start_ms": 0,
          "duration_ms": 10.25
        },
        {
          "name": "kernel",
          "depth": 1,
          "start_ms": 1,
          "duration_ms": 2,
          "open": true,
          "guest": true
        }
      ]
    }
  ]
}
`
	kernel := phase(1, "kernel", 1, 2)
	kernel.Open, kernel.Guest = true, true
	c := chart.Chart{Sandbox: "box", History: timeline.History{Lines: []timeline.Line{
		{Container: "web", Exec: "probe", Phases: []timeline.Phase{phase(0, "start exec", 0, 10.25), kernel}},
	}}}
	if d := cmp.Diff(want, write(t, c, chart.JSON)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if got := write(t, chart.Chart{}, chart.JSON); !strings.Contains(got, `"starts": []`) {
		t.Errorf("without starts: %s", got)
	}
}

// texts parses a document and returns its texts. It must have nothing that is run
// or fetched.
func texts(t *testing.T, document string) string {
	t.Helper()
	var b strings.Builder
	for dec := xml.NewDecoder(strings.NewReader(document)); ; {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return b.String()
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		switch token := token.(type) {
		case xml.CharData:
			b.Write(token)
		case xml.StartElement:
			switch token.Name.Local {
			case "svg", "title", "style", "rect", "text", "line", "path":
			default:
				t.Errorf("the picture has an element %s", token.Name.Local)
			}
			for _, a := range token.Attr {
				if strings.HasPrefix(a.Name.Local, "on") || strings.HasSuffix(a.Name.Local, "href") {
					t.Errorf("the picture has an attribute %s", a.Name.Local)
				}
			}
		}
	}
}

func TestSVG(t *testing.T) {
	text := texts(t, write(t, example(), chart.SVG))
	for _, want := range []string{
		"sandbox box, started 2026-11-23 07:39:03.319 UTC", "kata-proxy", "kernel (says the guest)", "880 ms", "first output",
		"at 60.00 s", "container web, 5s after the sandbox", "2 older starts", "prefers-color-scheme: dark",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the picture does not say %q", want)
		}
	}
}

// FuzzChart: whatever the names and times are, each format can be read, and a table
// does not act on a terminal.
func FuzzChart(f *testing.F) {
	f.Add("box", "web", "kernel", int64(5), int64(7), int64(9))
	f.Add("<script>", `"/><image href="x"/>`, "]]>&lt;\x00\x1b[31m\u202e", int64(-1), int64(0), int64(1)<<62)
	f.Add("\xff\xfe", "\u2028", strings.Repeat("<", 1000), int64(0), int64(0), int64(0))
	f.Add("a", "b", "c", int64(-1)<<63, int64(1)<<62, int64(3))
	f.Fuzz(func(t *testing.T, sandbox, container, name string, start, dur, other int64) {
		at := time.Unix(0, start)
		p := timeline.Phase{Name: name, Start: at, Dur: time.Duration(max(0, dur))}
		q := timeline.Phase{Name: name, Start: time.Unix(0, other), Depth: 9, Guest: true, Open: true}
		c := chart.Chart{Sandbox: sandbox, History: timeline.History{Forgotten: 1, Lines: []timeline.Line{
			{Phases: []timeline.Phase{p, q}}, {Container: container, Exec: name, Phases: []timeline.Phase{q}}, {},
		}}}
		texts(t, write(t, c, chart.SVG))
		for line := range strings.Lines(write(t, c, chart.Table)) {
			line = strings.TrimSuffix(line, "\n")
			if i := strings.IndexFunc(line, unicode.IsControl); i >= 0 || len(line) > 1000 {
				t.Errorf("%d bytes, a control character at %d: %.200q", len(line), i, line)
			}
		}
		if !json.Valid([]byte(write(t, c, chart.JSON))) {
			t.Error("the JSON is none")
		}
	})
}
