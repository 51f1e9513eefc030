// Package chart shows the time lines of a sandbox: as a table for a terminal, as
// JSON, and as a picture (SVG). It is pure. Names may come from anybody: what is
// shown of them is short and acts on nothing.
package chart

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/timeline"
)

// Version is that of the JSON. It changes when the meaning of a field does, not
// when there are more of them.
const Version = 1

// maxName bounds a name that is shown, in bytes.
const maxName = 48

// Chart is what is known of the starts in a sandbox.
type Chart struct {
	// Sandbox is its id.
	Sandbox string
	timeline.History
}

// Of leaves the lines of one container and its execs. The container that the
// sandbox is made for starts with that.
func (c Chart) Of(container string) Chart {
	of := Chart{Sandbox: c.Sandbox, History: timeline.History{Forgotten: c.Forgotten}}
	for _, l := range c.Lines {
		if l.Container == container || l.Container == "" && container == c.Sandbox {
			of.Lines = append(of.Lines, l)
		}
	}
	return of
}

// Format is how a chart is written.
type Format int

// The formats.
const (
	Table Format = iota
	JSON
	SVG
)

// FormatOf is the format that flags ask for.
func FormatOf(asJSON, asSVG bool) Format {
	switch {
	case asJSON:
		return JSON
	case asSVG:
		return SVG
	default:
		return Table
	}
}

// Write writes the chart.
func (c Chart) Write(w io.Writer, f Format) error {
	switch f {
	case JSON:
		return c.writeJSON(w)
	case SVG:
		return c.writeSVG(w)
	default:
		return c.writeTable(w)
	}
}

// span is how long a start lasts, and when it begins.
type span struct {
	began time.Time
	dur   time.Duration
}

// spanOf is from the first phase to the last end. A moment that comes much later is
// not waited for: a container may say nothing for hours.
func spanOf(ps []timeline.Phase) span {
	var s span
	for i, p := range ps {
		if i == 0 || p.Start.Before(s.began) {
			s.began = p.Start
		}
	}
	for _, p := range ps {
		if p.Dur > 0 {
			s.dur = max(s.dur, p.Start.Add(p.Dur).Sub(s.began))
		}
	}
	patience := s.dur
	if patience < time.Hour {
		patience *= 2
	}
	for _, p := range ps {
		if at := p.Start.Sub(s.began); p.Dur == 0 && at <= patience {
			s.dur = max(s.dur, at)
		}
	}
	s.dur = max(s.dur, time.Nanosecond)
	return s
}

// share is the part of the span that lies before t, from 0 to 1.
func (s span) share(t time.Time) float64 {
	return min(max(float64(t.Sub(s.began))/float64(s.dur), 0), 1)
}

func (s span) beyond(p timeline.Phase) bool { return p.Start.Sub(s.began) > s.dur }

// title says what a line is of. first is when that of the sandbox began.
func (c Chart) title(l timeline.Line, first time.Time) string {
	what := "sandbox " + show(c.Sandbox)
	if l.Container != "" {
		what = "container " + show(l.Container)
	}
	if l.Exec != "" {
		what = "exec " + show(l.Exec) + " in " + what
	}
	began := spanOf(l.Phases).began
	if l.Container == "" && l.Exec == "" {
		return what + ", started " + began.UTC().Format("2006-01-02 15:04:05.000 UTC")
	}
	return fmt.Sprintf("%s, %s after the sandbox", what, began.Sub(first).Round(time.Millisecond))
}

// first is when the first of the lines began.
func (c Chart) first() time.Time {
	var first time.Time
	for _, l := range c.Lines {
		if began := spanOf(l.Phases).began; first.IsZero() || began.Before(first) {
			first = began
		}
	}
	return first
}

// forgotten says that there was more.
func (c Chart) forgotten() string {
	if c.Forgotten == 0 {
		return ""
	}
	return fmt.Sprintf("%d older starts of containers and execs are not kept", c.Forgotten)
}

func show(name string) string { return printable.Text(name, 2*maxName) }

// labels are the names of the phases, with what has to be known of their times. What
// the guest says of one it says of the parts as well.
func labels(ps []timeline.Phase) []string {
	names := make([]string, 0, len(ps))
	said := math.MaxInt // the depth of the last phase of which that was told
	for _, p := range ps {
		if p.Depth <= said {
			said = math.MaxInt
		}
		names = append(names, label(p, p.Guest && said == math.MaxInt))
		if p.Guest {
			said = min(said, p.Depth)
		}
	}
	return names
}

func label(p timeline.Phase, guest bool) string {
	name := printable.Text(p.Name, maxName)
	if guest {
		name += " (says the guest)"
	}
	if p.Open {
		name += " (lasts)"
	}
	return name
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// bar is the width of the table's picture, in characters.
const bar = 40

func (c Chart) writeTable(w io.Writer) error {
	var b strings.Builder
	first := c.first()
	for i, l := range c.Lines {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintln(&b, c.title(l, first))
		s := spanOf(l.Phases)
		names, width := labels(l.Phases), len("phase")
		for i, p := range l.Phases {
			names[i] = strings.Repeat("  ", p.Depth) + names[i]
			width = max(width, len([]rune(names[i])))
		}
		fmt.Fprintf(&b, "%10s %9s  %s\n", "start ms", "for ms", "phase")
		for i, p := range l.Phases {
			dur := fmt.Sprintf("%.1f", ms(p.Dur))
			if p.Dur == 0 {
				dur = ""
			}
			fmt.Fprintf(&b, "%10.1f %9s  %-*s  %s\n", ms(p.Start.Sub(s.began)), dur, width, names[i], s.draw(p))
		}
	}
	if text := c.forgotten(); text != "" {
		fmt.Fprintln(&b, "\n"+text)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// draw draws a phase as a line of text: = while it lasts, | for a moment, > for
// one that comes later.
func (s span) draw(p timeline.Phase) string {
	from := int(s.share(p.Start) * bar)
	switch {
	case s.beyond(p):
		return strings.Repeat(" ", bar) + ">"
	case p.Dur == 0:
		return strings.Repeat(" ", min(from, bar-1)) + "|"
	}
	from = min(from, bar-1)
	to := max(int(s.share(p.Start.Add(p.Dur))*bar+0.5), from+1)
	return strings.Repeat(" ", from) + strings.Repeat("=", to-from)
}

// document is the JSON of a chart; docs/trace.md describes it.
type document struct {
	Version   int     `json:"version"`
	Sandbox   string  `json:"sandbox"`
	Forgotten int     `json:"forgotten"`
	Starts    []start `json:"starts"`
}

type start struct {
	Container  string    `json:"container,omitempty"`
	Exec       string    `json:"exec,omitempty"`
	Began      time.Time `json:"began"`
	DurationMs float64   `json:"duration_ms"`
	Phases     []phase   `json:"phases"`
}

type phase struct {
	Name       string  `json:"name"`
	Depth      int     `json:"depth"`
	StartMs    float64 `json:"start_ms"`
	DurationMs float64 `json:"duration_ms"`
	Open       bool    `json:"open,omitempty"`
	Guest      bool    `json:"guest,omitempty"`
}

func (c Chart) writeJSON(w io.Writer) error {
	doc := document{Version: Version, Sandbox: c.Sandbox, Forgotten: c.Forgotten, Starts: []start{}}
	for _, l := range c.Lines {
		s := spanOf(l.Phases)
		st := start{Container: l.Container, Exec: l.Exec, Began: s.began.UTC(), DurationMs: ms(s.dur), Phases: []phase{}}
		for _, p := range l.Phases {
			st.Phases = append(st.Phases, phase{
				Name: p.Name, Depth: p.Depth, StartMs: ms(p.Start.Sub(s.began)), DurationMs: ms(p.Dur), Open: p.Open, Guest: p.Guest,
			})
		}
		doc.Starts = append(doc.Starts, st)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}
