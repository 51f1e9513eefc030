package plot

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"
)

// rects returns the widths of all bars of a picture, which has to be well-formed.
func rects(t *testing.T, svg string) []float64 {
	t.Helper()
	var widths []float64
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return widths
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			for _, a := range e.Attr {
				if a.Name.Local == "width" {
					w, _ := strconv.ParseFloat(a.Value, 64)
					widths = append(widths, w)
				}
			}
		}
	}
}

func TestSVG(t *testing.T) {
	c := Chart{
		Title: "Start <of> \"it\" & all", Unit: "s",
		Groups: []Group{
			{Heading: "1 at once", Bars: []Bar{{Label: "kata", Value: 10, Text: "10 s", Remark: "= 5 × runc", Ours: true}, {Label: "runc", Value: 5, Low: 4, High: 6}}},
			{Bars: []Bar{{Label: "none"}, {Label: "odd", Value: math.NaN()}}},
		},
	}
	svg := c.SVG()
	got := rects(t, svg)
	if len(got) != 4 || got[0] != 2*got[1] || got[2] != 1 || got[3] != 1 {
		t.Errorf("bars %v, want one twice as long as the next, and two of nothing", got)
	}
	if got[0]+labels+remarks > width {
		t.Errorf("a bar of %v leaves no room for the remark", got[0])
	}
	for _, want := range []string{"less is better", "1 at once", "= 5 × runc", "prefers-color-scheme: dark", `class="spread"`, `class="bar ours"`} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %q in\n%s", want, svg)
		}
	}
}

func TestNothingToDraw(t *testing.T) {
	if got := rects(t, Chart{More: true}.SVG()); len(got) != 0 {
		t.Errorf("got %v, want no bars", got)
	}
}

// The spread fits in as well.
func TestSpreadIsScaled(t *testing.T) {
	svg := Chart{Groups: []Group{{Bars: []Bar{{Label: "a", Value: 1, Low: 1, High: 10, Text: "1"}}}}}.SVG()
	if got := rects(t, svg); len(got) != 1 || got[0] > float64(width-labels-remarks)/10+1 {
		t.Errorf("got %v, want a tenth of the room", got)
	}
}
