package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/seed-efd44b36/kata/test/bench/plot"
	"github.com/seed-efd44b36/kata/test/bench/result"
)

// Names of what is written; the pictures have names of their own.
const (
	pageName = "measured.md"
	dataName = "measured.json"
)

// write writes page, data and pictures to a directory, or without one the page to
// out.
func write(out io.Writer, dir string, r *result.Report, b result.Budget) error {
	if dir == "" {
		_, err := io.WriteString(out, r.Markdown(b, func(result.Section) []string { return nil }))
		return err
	}
	pictures := charts(r)
	data, err := r.JSON()
	if err != nil {
		return err
	}
	page := r.Markdown(b, func(s result.Section) []string {
		var names []string
		for _, p := range pictures {
			if p.slug == slug(s) {
				names = append(names, p.name)
			}
		}
		return names
	})
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files := map[string][]byte{pageName: []byte(page), dataName: data}
	for _, p := range pictures {
		files[p.name] = []byte(p.chart.SVG())
	}
	// Pictures of a former run that had more would look like this one's.
	old, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil {
		return err
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	_, err = fmt.Fprintln(out, filepath.Join(dir, pageName))
	return err
}

// picture is a chart in a file.
type picture struct {
	slug, name string
	chart      plot.Chart
}

// inTable are figures that are shown in the table only.
var inTable = []string{"failed", "owner", "agent"} //nolint:gochecknoglobals // a constant list

// charts draws one picture for each figure of each family of measurements.
func charts(r *result.Report) []picture {
	var list []picture
	for _, s := range r.Sections {
		if s.Upright {
			continue
		}
		for _, f := range r.Figures {
			if f.Measurement != s.Name || slices.Contains(inTable, f.Name) {
				continue
			}
			name := slug(s) + "-" + f.Name + ".svg"
			i := slices.IndexFunc(list, func(p picture) bool { return p.name == name })
			if i < 0 {
				title := s.Title
				if s.Family != "" {
					title = s.Family
				}
				i, list = len(list), append(list, picture{slug(s), name, plot.Chart{Title: title + ": " + f.What, Unit: f.Unit, More: f.More}})
			}
			c := &list[i].chart
			heading := ""
			if s.Family != "" {
				heading = s.Title
			}
			if n := len(c.Groups); n == 0 || c.Groups[n-1].Heading != heading {
				c.Groups = append(c.Groups, plot.Group{Heading: heading})
			}
			g := &c.Groups[len(c.Groups)-1]
			g.Bars = append(g.Bars, bar(f))
		}
	}
	return list
}

func bar(f result.Figure) plot.Bar {
	b := plot.Bar{Label: f.Subject, Value: f.Stats.Median, Text: result.Number(f.Stats.Median), Ours: strings.HasPrefix(f.Subject, "kata-")}
	if f.Stats.N > 1 {
		b.Low, b.High = f.Stats.Min, f.Stats.P95
	}
	if f.To != "" {
		b.Remark = "= " + result.Number(f.Ratio) + " × runc"
	}
	return b
}
