package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// samples are measurements of one thing.
type samples []float64

func (s samples) median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

// figure is a line of the table.
type figure struct {
	// Name is what the budget refers to.
	Name string `json:"name"`
	What string `json:"what"`
	Unit string `json:"unit"`
	// N measurements, their median, least and most.
	N      int     `json:"n"`
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	// Table is the heading of the table that the figure belongs to, empty for the
	// first.
	Table string `json:"table,omitempty"`
	// Beside has the medians of the same with other runtimes.
	Beside map[string]float64 `json:"beside,omitempty"`
}

// others are the runtimes that may stand beside ours, in the order of columns.
func others() []string { return []string{"runc", "crun", "runsc"} }

func newFigure(name, what, unit string, s, runc samples) figure {
	f := figure{Name: name, What: what, Unit: unit, N: len(s), Median: s.median(), Min: slices.Min(s), Max: slices.Max(s)}
	if len(runc) > 0 {
		f.beside("runc", runc.median())
	}
	return f
}

// beside puts the median of another runtime beside.
func (f *figure) beside(runtime string, median float64) {
	if f.Beside == nil {
		f.Beside = make(map[string]float64)
	}
	f.Beside[runtime] = median
}

// result is all that a run has found out.
type result struct {
	Date    string   `json:"date"`
	Machine []string `json:"machine"`
	Figures []figure `json:"figures"`
	// Notes tell what was left out, and why.
	Notes []string `json:"notes,omitempty"`
}

// limit is what a figure must not exceed, or must reach.
type limit struct {
	Name string  `json:"name"`
	Max  float64 `json:"max,omitempty"`
	Min  float64 `json:"min,omitempty"`
	// Tolerance is the part of the limit by which it may be missed before
	// -check fails: machines are not all as fast as the next.
	Tolerance float64 `json:"tolerance"`
	Why       string  `json:"why"`
}

func readBudget(path string) ([]limit, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("budget: %w", err)
	}
	var limits []limit
	if err := json.Unmarshal(b, &limits); err != nil {
		return nil, fmt.Errorf("budget %s: %w", path, err)
	}
	return limits, nil
}

func (l limit) String() string {
	if l.Min > 0 {
		return fmt.Sprintf("≥ %g", l.Min)
	}
	return fmt.Sprintf("≤ %g", l.Max)
}

// missed tells whether the figure is beyond the limit, with the tolerance or
// without.
func (l limit) missed(f figure, tolerance float64) bool {
	if l.Min > 0 {
		return f.Median < l.Min*(1-tolerance)
	}
	return f.Median > l.Max*(1+tolerance)
}

// exceeded returns an error that names all figures beyond their limits. A limit
// without a figure is one, too.
func exceeded(r *result, limits []limit) error {
	var errs []error
	for _, l := range limits {
		i := slices.IndexFunc(r.Figures, func(f figure) bool { return f.Name == l.Name })
		switch {
		case i < 0:
			errs = append(errs, fmt.Errorf("%s: not measured", l.Name))
		case l.missed(r.Figures[i], l.Tolerance):
			f := r.Figures[i]
			errs = append(errs, fmt.Errorf("%s: %s %s, the limit is %s with a tolerance of %.0f %%", f.Name, number(f.Median), f.Unit, l, l.Tolerance*100))
		}
	}
	return errors.Join(errs...)
}

// markdown prints the tables.
func (r *result) markdown(out io.Writer, limits []limit) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. %s.\n", r.Date, strings.Join(r.Machine, "; "))
	for rest := r.Figures; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].Table == rest[0].Table {
			n++
		}
		table(&b, rest[:n], limits)
		rest = rest[n:]
	}
	for i, n := range r.Notes {
		if i == 0 {
			b.WriteByte('\n')
		}
		b.WriteString("- " + n + "\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// table prints figures of one table.
func table(b *strings.Builder, figures []figure, limits []limit) {
	columns := slices.DeleteFunc(others(), func(runtime string) bool {
		return !slices.ContainsFunc(figures, func(f figure) bool { _, ok := f.Beside[runtime]; return ok })
	})
	b.WriteByte('\n')
	if heading := figures[0].Table; heading != "" {
		b.WriteString(heading + ":\n\n")
	}
	fmt.Fprintf(b, "| %s |\n|%s\n", strings.Join(append([]string{"what", "n", "median", "range", "limit"}, columns...), " | "), strings.Repeat("---|", 5+len(columns)))
	for _, f := range figures {
		lim := ""
		for _, l := range limits {
			if l.Name == f.Name {
				lim = l.String()
				if l.missed(f, 0) {
					lim += " (missed)"
				}
			}
		}
		fmt.Fprintf(b, "| %s, %s | %d | %s | %s to %s | %s |", f.What, f.Unit, f.N, number(f.Median), number(f.Min), number(f.Max), lim)
		for _, c := range columns {
			text := ""
			if v, ok := f.Beside[c]; ok {
				text = number(v)
			}
			fmt.Fprintf(b, " %s |", text)
		}
		b.WriteByte('\n')
	}
}

// number prints three significant digits or so.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v == 0:
		return "0"
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
