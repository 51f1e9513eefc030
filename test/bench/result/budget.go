package result

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
)

// Budget is what figures are held to.
type Budget struct {
	// Limits are what must not be broken: the check fails when one is.
	Limits []Line `json:"limits"`
	// Targets are what is to be reached. The report says which are; they are never
	// changed to fit.
	Targets []Line `json:"targets"`
}

// Line is a limit or a target.
type Line struct {
	Name string `json:"name"`
	// Measurement and Figure say what is measured; Subject is a pattern, as of
	// path.Match, of the subjects that are held to it.
	Measurement string `json:"measurement"`
	Figure      string `json:"figure"`
	Subject     string `json:"subject"`
	// To is the subject that the ratio to is meant; empty: the figure itself.
	To string `json:"to,omitempty"`
	// One of these two is there.
	AtMost  *float64 `json:"at_most,omitempty"`
	AtLeast *float64 `json:"at_least,omitempty"`
	// Unit is that of the limit, for readers; a ratio has none.
	Unit string `json:"unit,omitempty"`
	// Tolerance is the part of the limit by which it may be missed: machines are not
	// all as fast as the next.
	Tolerance float64 `json:"tolerance,omitempty"`
	Why       string  `json:"why"`
}

// ReadBudget reads a file and checks each line.
func ReadBudget(file string) (Budget, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return Budget{}, fmt.Errorf("budget: %w", err)
	}
	b, err := parseBudget(data)
	if err != nil {
		return Budget{}, fmt.Errorf("budget %s: %w", file, err)
	}
	return b, nil
}

func parseBudget(data []byte) (Budget, error) {
	var b Budget
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&b); err != nil {
		return b, err
	}
	var errs []error
	names := map[string]bool{}
	for _, l := range slices.Concat(b.Limits, b.Targets) {
		_, bad := path.Match(l.Subject, "")
		switch {
		case l.Name == "" || l.Measurement == "" || l.Figure == "" || l.Subject == "" || l.Why == "":
			errs = append(errs, fmt.Errorf("line %q: name, measurement, figure, subject and why have to be there", l.Name))
		case (l.AtMost == nil) == (l.AtLeast == nil):
			errs = append(errs, fmt.Errorf("line %s: one of at_most and at_least has to be there", l.Name))
		case bad != nil:
			errs = append(errs, fmt.Errorf("line %s: subject %q: %w", l.Name, l.Subject, bad))
		case l.Tolerance < 0 || l.Tolerance >= 1:
			errs = append(errs, fmt.Errorf("line %s: tolerance %g is not between 0 and 1", l.Name, l.Tolerance))
		case names[l.Name]:
			errs = append(errs, fmt.Errorf("line %s is there twice", l.Name))
		}
		names[l.Name] = true
	}
	return b, errors.Join(errs...)
}

// Holds tells whether a subject is held to the line.
func (l Line) Holds(subject string) bool {
	ok, _ := path.Match(l.Subject, subject)
	return ok
}

// Bound is the limit in words.
func (l Line) Bound() string {
	unit := l.Unit
	if l.To != "" {
		unit = "× " + l.To
	}
	if l.AtLeast != nil {
		return strings.TrimSpace(fmt.Sprintf("≥ %g %s", *l.AtLeast, unit))
	}
	return strings.TrimSpace(fmt.Sprintf("≤ %g %s", *l.AtMost, unit))
}

// Verdict is how one subject stands to a line.
type Verdict struct {
	Line    Line
	Subject string
	Unit    string
	// Stats are of the figure, or of its ratios; with no N it was not measured.
	Stats Stats
	// Met tells that the median is within the line. Broken tells that it is beyond
	// it by more than the tolerance, and than chance explains.
	Met, Broken bool
}

// Verdicts tells of each subject that is held to the line and was measured. When
// there is none, it is one verdict without a figure.
func (r *Report) Verdicts(l Line) []Verdict {
	var list []Verdict
	for i := range r.Figures {
		f := &r.Figures[i]
		if f.Measurement != l.Measurement || f.Name != l.Figure || !l.Holds(f.Subject) {
			continue
		}
		v := Verdict{Line: l, Subject: f.Subject, Unit: f.Unit, Stats: Summarize(values(f.Samples))}
		if l.To != "" {
			v.Unit = "×"
			v.Stats = Stats{}
			if by := r.find(l.Measurement, l.Figure, l.To); by != nil {
				v.Stats = Summarize(ratios(f.Samples, by.Samples))
			}
		}
		if v.Stats.N > 0 {
			v.Met, v.Broken = l.judge(v.Stats)
		}
		list = append(list, v)
	}
	if len(list) == 0 {
		list = append(list, Verdict{Line: l, Subject: l.Subject})
	}
	return list
}

// judge compares with the line.
func (l Line) judge(s Stats) (met, broken bool) {
	if l.AtLeast != nil {
		return s.Median >= *l.AtLeast, s.Median+s.Notch < *l.AtLeast*(1-l.Tolerance)
	}
	return s.Median <= *l.AtMost, s.Median-s.Notch > *l.AtMost*(1+l.Tolerance)
}

// Broken returns the verdicts on limits that are broken, or could not be judged.
func (r *Report) Broken(b Budget) []Verdict {
	return r.verdicts(b, func(v Verdict) bool { return v.Broken || v.Stats.N == 0 })
}

// Doubtful returns the verdicts on limits that are broken, or rest on a
// measurement in which something failed: one more try is due.
func (r *Report) Doubtful(b Budget) []Verdict {
	return r.verdicts(b, func(v Verdict) bool {
		return v.Broken || v.Stats.N == 0 || slices.ContainsFunc(r.Skipped, func(s Skip) bool {
			return s.Failed && s.Measurement == v.Line.Measurement && (s.Subject == v.Subject || s.Subject == v.Line.To)
		})
	})
}

func (r *Report) verdicts(b Budget, which func(Verdict) bool) []Verdict {
	var list []Verdict
	for _, l := range b.Limits {
		for _, v := range r.Verdicts(l) {
			if which(v) {
				list = append(list, v)
			}
		}
	}
	return list
}

// Err is the verdict as an error.
func (v Verdict) Err() error {
	if v.Stats.N == 0 {
		return fmt.Errorf("%s (%s): not measured", v.Line.Name, v.Subject)
	}
	return fmt.Errorf("%s (%s): %s %s, off by %s at most by chance; the limit is %s with a tolerance of %.0f %%",
		v.Line.Name, v.Subject, Number(v.Stats.Median), v.Unit, Number(v.Stats.Notch), v.Line.Bound(), v.Line.Tolerance*100)
}
