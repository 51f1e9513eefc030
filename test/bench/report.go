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
	// Runc is the median of the same with runc, 0 when there is none.
	Runc float64 `json:"runc,omitempty"`
}

func newFigure(name, what, unit string, s, runc samples) figure {
	return figure{
		Name: name, What: what, Unit: unit, N: len(s),
		Median: s.median(), Min: slices.Min(s), Max: slices.Max(s), Runc: runc.median(),
	}
}

// result is all that a run has found out.
type result struct {
	Date    string   `json:"date"`
	Machine []string `json:"machine"`
	Figures []figure `json:"figures"`
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

// markdown prints the table.
func (r *result) markdown(out io.Writer, limits []limit) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. %s.\n\n", r.Date, strings.Join(r.Machine, "; "))
	b.WriteString("| what | n | median | range | limit | runc |\n|---|---|---|---|---|---|\n")
	for _, f := range r.Figures {
		lim, runc := "", ""
		for _, l := range limits {
			if l.Name == f.Name {
				lim = l.String()
				if l.missed(f, 0) {
					lim += " (missed)"
				}
			}
		}
		if f.Runc != 0 {
			runc = number(f.Runc)
		}
		fmt.Fprintf(&b, "| %s, %s | %d | %s | %s to %s | %s | %s |\n", f.What, f.Unit, f.N, number(f.Median), number(f.Min), number(f.Max), lim, runc)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// number prints three significant digits or so.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
