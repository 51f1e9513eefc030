package result

import (
	"encoding/json"
	"fmt"
	"slices"
)

// Unit is what a measurement tells: the name that the budget uses, what it means
// to a reader, and the unit.
type Unit struct {
	Name, What, Unit string
	// More tells that more is better.
	More bool
}

// Figure is one thing measured of one subject.
type Figure struct {
	Measurement string   `json:"measurement"`
	Name        string   `json:"name"`
	What        string   `json:"what"`
	Unit        string   `json:"unit"`
	More        bool     `json:"more_is_better,omitempty"`
	Subject     string   `json:"subject"`
	Samples     []Sample `json:"samples"`
	// Stats, Ratio and To are filled by [Report.Complete]: Ratio is the median of the
	// ratios, round by round, to the subject To.
	Stats Stats   `json:"stats"`
	Ratio float64 `json:"ratio,omitempty"`
	To    string  `json:"to,omitempty"`
}

// Section is a measurement as the report shows it.
type Section struct {
	Name string `json:"name"`
	// Title is the heading. Neighbouring sections with the same Family share one,
	// and their plots; Title then tells them apart.
	Title  string `json:"title"`
	Family string `json:"family,omitempty"`
	// About explains what is measured.
	About string `json:"about,omitempty"`
	// Upright tells that the table has a line for each figure and columns for the
	// subjects, and that there are no pictures: of many figures.
	Upright bool `json:"upright,omitempty"`
}

// Skip is a subject, or a part of one, that was left out.
type Skip struct {
	Subject string `json:"subject"`
	// Measurement is what it was left out of, empty: all.
	Measurement string `json:"measurement,omitempty"`
	Why         string `json:"why"`
	// Failed tells that it should have run.
	Failed bool `json:"failed,omitempty"`
}

// Report is all that a run has found out.
type Report struct {
	Date   string `json:"date"`
	Commit string `json:"commit"`
	// Mode is "full", "quick" or "check".
	Mode    string   `json:"mode"`
	Minutes float64  `json:"minutes"`
	Machine []string `json:"machine"`
	// LoadStart and LoadEnd are the load of the machine.
	LoadStart string    `json:"load_start"`
	LoadEnd   string    `json:"load_end"`
	Sections  []Section `json:"sections"`
	Figures   []Figure  `json:"figures"`
	Skipped   []Skip    `json:"skipped,omitempty"`
}

// Add adds a sample to a figure, which is made when it is not there.
func (r *Report) Add(measurement string, u Unit, subject string, s Sample) {
	f := r.find(measurement, u.Name, subject)
	if f == nil {
		r.Figures = append(r.Figures, Figure{Measurement: measurement, Name: u.Name, What: u.What, Unit: u.Unit, More: u.More, Subject: subject})
		f = &r.Figures[len(r.Figures)-1]
	}
	f.Samples = append(f.Samples, s)
}

// Forget drops the figures of a measurement of subjects, and why some were left
// out of it, before they are measured again.
func (r *Report) Forget(measurement string, subjects []string) {
	r.Figures = slices.DeleteFunc(r.Figures, func(f Figure) bool {
		return f.Measurement == measurement && slices.Contains(subjects, f.Subject)
	})
	r.Skipped = slices.DeleteFunc(r.Skipped, func(s Skip) bool {
		return s.Measurement == measurement && slices.Contains(subjects, s.Subject)
	})
}

// Figure returns a figure, nil when it was not measured.
func (r *Report) Figure(measurement, name, subject string) *Figure {
	return r.find(measurement, name, subject)
}

func (r *Report) find(measurement, name, subject string) *Figure {
	i := slices.IndexFunc(r.Figures, func(f Figure) bool {
		return f.Measurement == measurement && f.Name == name && f.Subject == subject
	})
	if i < 0 {
		return nil
	}
	return &r.Figures[i]
}

// Complete computes what follows from the samples. reference names the subject
// that one is compared with, order compares names of subjects.
func (r *Report) Complete(reference func(subject string) string, order func(a, b string) int) {
	for i := range r.Figures {
		f := &r.Figures[i]
		f.Stats = Summarize(values(f.Samples))
		f.Ratio, f.To = 0, ""
		to := reference(f.Subject)
		if by := r.find(f.Measurement, f.Name, to); by != nil && by != f {
			if list := ratios(f.Samples, by.Samples); len(list) > 0 {
				f.Ratio, f.To = Summarize(list).Median, to
			}
		}
	}
	slices.SortStableFunc(r.Figures, func(a, b Figure) int { return order(a.Subject, b.Subject) })
}

// JSON returns the report for programs.
func (r *Report) JSON() ([]byte, error) {
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encode figures: %w", err)
	}
	return append(data, '\n'), nil
}
