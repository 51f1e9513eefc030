package result

import (
	"fmt"
	"slices"
	"strings"
)

// manySamples is from when on a 95th percentile says something.
const manySamples = 10

// Markdown returns the report for readers. plots returns the names of the
// pictures that go with a section.
func (r *Report) Markdown(b Budget, plots func(Section) []string) string {
	var out strings.Builder
	fmt.Fprintf(&out, "# Measured\n\nWritten by `make bench` (%s run of %.0f minutes), not by hand. What it means: [performance.md](../performance.md).\n\n", r.Mode, r.Minutes)
	fmt.Fprintf(&out, "%s, commit %s. %s. Load %s at the start, %s at the end.\n", r.Date, r.Commit, strings.Join(r.Machine, "; "), r.LoadStart, r.LoadEnd)
	r.budget(&out, b)
	family := ""
	for _, s := range r.Sections {
		figures := r.units(s.Name)
		if len(figures) == 0 {
			continue
		}
		if s.Family == "" || s.Family != family {
			heading := s.Title
			if s.Family != "" {
				heading = s.Family
			}
			fmt.Fprintf(&out, "\n## %s\n", heading)
			if s.About != "" {
				fmt.Fprintf(&out, "\n%s\n", s.About)
			}
			for _, p := range plots(s) {
				fmt.Fprintf(&out, "\n![%s](%s)\n", strings.TrimSuffix(p, ".svg"), p)
			}
		}
		if family = s.Family; family != "" {
			fmt.Fprintf(&out, "\n### %s\n", s.Title)
		}
		if s.Upright {
			r.upright(&out, s.Name, figures)
			continue
		}
		r.table(&out, s.Name, figures)
	}
	if len(r.Skipped) > 0 {
		out.WriteString("\n## Left out\n\n")
		for _, s := range r.Skipped {
			failed := ""
			if s.Failed {
				failed = "**failed**: "
			}
			what := s.Subject
			if s.Measurement != "" {
				what += ", " + s.Measurement
			}
			fmt.Fprintf(&out, "- %s: %s%s\n", what, failed, s.Why)
		}
	}
	return out.String()
}

// budget writes how the figures stand to limits and targets.
func (r *Report) budget(out *strings.Builder, b Budget) {
	for _, part := range []struct {
		title string
		lines []Line
		bad   string
	}{{"Targets", b.Targets, "missed"}, {"Limits", b.Limits, "missed, but within tolerance or chance"}} {
		if len(part.lines) == 0 {
			continue
		}
		fmt.Fprintf(out, "\n## %s\n\n| what | subject | to reach | measured | |\n|---|---|---|---|---|\n", part.title)
		for _, l := range part.lines {
			for _, v := range r.Verdicts(l) {
				measured, verdict := "", "not measured"
				if v.Stats.N > 0 {
					measured, verdict = Number(v.Stats.Median)+" "+v.Unit, "met"
					switch {
					case v.Broken && part.bad != "missed":
						verdict = "**broken**"
					case !v.Met:
						verdict = "**" + part.bad + "**"
					}
				}
				fmt.Fprintf(out, "| %s, %s | %s | %s | %s | %s |\n", l.Name, l.Why, v.Subject, l.Bound(), measured, verdict)
			}
		}
	}
}

// units returns the figures of a measurement, one of each name, in the order in
// which they were first added.
func (r *Report) units(measurement string) []Figure {
	var list []Figure
	for _, f := range r.Figures {
		if f.Measurement == measurement && !slices.ContainsFunc(list, func(o Figure) bool { return o.Name == f.Name }) {
			list = append(list, f)
		}
	}
	return list
}

// upright writes one line for each figure.
func (r *Report) upright(out *strings.Builder, measurement string, units []Figure) {
	var subjects []string
	compared := map[string]bool{} // subjects with a ratio
	for _, f := range r.Figures {
		if f.Measurement == measurement {
			compared[f.Subject] = compared[f.Subject] || f.To != ""
			if !slices.Contains(subjects, f.Subject) {
				subjects = append(subjects, f.Subject)
			}
		}
	}
	head := []string{"", "n"}
	for _, s := range subjects {
		head = append(head, s)
		if compared[s] {
			head = append(head, "× runc")
		}
	}
	fmt.Fprintf(out, "\n| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, u := range units {
		n := 0
		var cells []string
		for _, s := range subjects {
			median, ratio := "", ""
			if f := r.find(measurement, u.Name, s); f != nil {
				n = max(n, f.Stats.N)
				median = Number(f.Stats.Median)
				if f.To != "" {
					ratio = Number(f.Ratio)
				}
			}
			cells = append(cells, median)
			if compared[s] {
				cells = append(cells, ratio)
			}
		}
		fmt.Fprintf(out, "| %s, %s | %d | %s |\n", u.What, u.Unit, n, strings.Join(cells, " | "))
	}
}

// table writes one line for each subject.
func (r *Report) table(out *strings.Builder, measurement string, units []Figure) {
	var subjects []string
	many := false
	compared := map[string]bool{} // figures with a ratio
	for _, f := range r.Figures {
		if f.Measurement == measurement {
			many = many || f.Stats.N >= manySamples
			compared[f.Name] = compared[f.Name] || f.To != ""
			if !slices.Contains(subjects, f.Subject) {
				subjects = append(subjects, f.Subject)
			}
		}
	}
	head := []string{"", "n"}
	for _, u := range units {
		head = append(head, u.What+", "+u.Unit)
		if many {
			head = append(head, "p95")
		}
		if compared[u.Name] {
			head = append(head, "× runc")
		}
	}
	fmt.Fprintf(out, "\n| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, s := range subjects {
		n := 0
		var cells []string
		for _, u := range units {
			median, p95, ratio := "", "", ""
			if f := r.find(measurement, u.Name, s); f != nil {
				n = max(n, f.Stats.N)
				median, p95 = Number(f.Stats.Median), Number(f.Stats.P95)
				if f.To != "" {
					ratio = Number(f.Ratio)
				}
			}
			cells = append(cells, median)
			if many {
				cells = append(cells, p95)
			}
			if compared[u.Name] {
				cells = append(cells, ratio)
			}
		}
		fmt.Fprintf(out, "| %s | %d | %s |\n", s, n, strings.Join(cells, " | "))
	}
}

// Number prints three significant digits or so.
func Number(v float64) string {
	switch {
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0")
	case v == 0:
		return "0"
	case v >= 0.1 || v <= -0.1:
		return strings.TrimSuffix(fmt.Sprintf("%.2f", v), ".00")
	default:
		return fmt.Sprintf("%.3f", v)
	}
}
