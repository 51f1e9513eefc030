// Package plot draws bar charts as SVG pictures: one horizontal bar for each
// value, with the value and a remark beside it, in groups. They have no
// background and follow the reader's choice of light or dark.
package plot

import (
	"cmp"
	"fmt"
	"html"
	"math"
	"strings"
)

// Chart is one picture.
type Chart struct {
	Title string
	// Unit is written behind values, More tells that longer bars are better.
	Unit   string
	More   bool
	Groups []Group
}

// Group is some bars below a heading, which may be empty.
type Group struct {
	Heading string
	Bars    []Bar
}

// Bar is one value.
type Bar struct {
	Label string
	Value float64
	// Low and High are the ends of the line that shows the spread; both 0: none.
	Low, High float64
	// Text is the value as it is written, Remark what stands behind it.
	Text, Remark string
	// Ours makes the bar stand out.
	Ours bool
}

// Sizes, in pixels.
const (
	width     = 760
	labels    = 170 // width of the column of labels
	remarks   = 170 // of that behind the longest bar
	rowHeight = 22
	barHeight = 14
	heading   = 44 // height of the title's two lines
	margin    = 12
)

const style = `
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-size: 14px; font-weight: 600 }
.quiet { fill: #57606a }
.bar { fill: #8c959f }
.ours { fill: #0969da }
.spread { stroke: #24292f; stroke-width: 1 }
@media (prefers-color-scheme: dark) {
 text { fill: #e6edf3 }
 .quiet { fill: #9198a1 }
 .bar { fill: #6e7681 }
 .ours { fill: #4493f8 }
 .spread { stroke: #e6edf3 }
}
`

// SVG draws the chart.
func (c Chart) SVG() string {
	var body strings.Builder
	y := margin + heading
	longest := c.longest()
	for _, g := range c.Groups {
		if g.Heading != "" {
			fmt.Fprintf(&body, "<text class=\"quiet\" x=\"%d\" y=\"%d\">%s</text>\n", margin, y+rowHeight-8, escape(g.Heading))
			y += rowHeight
		}
		for _, b := range g.Bars {
			b.draw(&body, y, (width-labels-remarks-margin)/longest)
			y += rowHeight
		}
	}
	better := "less is better"
	if c.More {
		better = "more is better"
	}
	height := y + margin
	return fmt.Sprintf("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\" aria-label=\"%s\">\n<style>%s</style>\n"+
		"<text class=\"title\" x=\"%d\" y=\"%d\">%s</text>\n<text class=\"quiet\" x=\"%d\" y=\"%d\">%s, %s</text>\n%s</svg>\n",
		width, height, width, height, escape(c.Title), style, margin, margin+12, escape(c.Title),
		margin, margin+30, escape(cmp.Or(c.Unit, "number")), better, body.String())
}

// longest is the largest value that has to fit.
func (c Chart) longest() float64 {
	most := 0.0
	for _, g := range c.Groups {
		for _, b := range g.Bars {
			most = max(most, finite(b.Value), finite(b.High))
		}
	}
	if most == 0 {
		return 1
	}
	return most
}

// finite is v, or 0 for what cannot be drawn.
func finite(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
		return 0
	}
	return v
}

func (b Bar) draw(out *strings.Builder, y int, scale float64) {
	class := "bar"
	if b.Ours {
		class = "bar ours"
	}
	length := finite(b.Value) * scale
	end := max(length, finite(b.High)*scale)
	middle := y + barHeight/2 + 2
	fmt.Fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", labels-8, middle+4, escape(b.Label))
	fmt.Fprintf(out, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" rx=\"2\"/>\n", class, labels, y+2, max(length, 1), barHeight)
	if b.High > b.Low {
		fmt.Fprintf(out, "<line class=\"spread\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>\n", labels+finite(b.Low)*scale, labels+finite(b.High)*scale, middle, middle)
	}
	fmt.Fprintf(out, "<text x=\"%.1f\" y=\"%d\">%s<tspan class=\"quiet\" dx=\"6\">%s</tspan></text>\n", labels+end+6, middle+4, escape(b.Text), escape(b.Remark))
}

func escape(s string) string { return html.EscapeString(s) }
