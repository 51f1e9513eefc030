package chart

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/internal/timeline"
)

// The places of things in the picture, in its units.
const (
	pictureWidth = 1000
	margin       = 16
	indent       = 14  // of a part under its whole
	numbers      = 360 // where the durations end
	barsFrom     = 380
	barsTo       = pictureWidth - margin
	rowHeight    = 22
	titleHeight  = 34
	axisHeight   = 26
	gap          = 12 // after a line
	mostDepths   = 4  // kinds of bars
	mostIndents  = 8
	mostTicks    = 10
)

// style makes the picture fit for dark and for light surroundings. It has its own
// background, so that its text can be read wherever it is shown; and no variables,
// which only browsers know.
const style = `
.back { fill: #ffffff }
text { fill: #1f2328; font-family: system-ui, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; font-size: 13px }
.title { font-weight: 600; font-size: 14px }
.faint { fill: #59636e; font-size: 12px }
.number { text-anchor: end; font-variant-numeric: tabular-nums }
.tick { text-anchor: middle }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.d0 { fill: #8c959f } .d1 { fill: #0969da } .d2 { fill: #54aeff } .d3 { fill: #9cd0ff }
.guest { fill: #bf8700 }
.mark { fill: #cf222e }
@media (prefers-color-scheme: dark) {
 .back { fill: #0d1117 }
 text { fill: #f0f6fc }
 .faint { fill: #9198a1 }
 .grid { stroke: #3d444d }
 .d0 { fill: #6e7681 } .d1 { fill: #4493f8 } .d2 { fill: #316dca } .d3 { fill: #264e86 }
 .guest { fill: #d29922 }
 .mark { fill: #f85149 }
}
`

func (c Chart) writeSVG(w io.Writer) error {
	var b strings.Builder
	height := 2 * margin
	for _, l := range c.Lines {
		height += titleHeight + axisHeight + rowHeight*len(l.Phases) + gap
	}
	if c.Forgotten > 0 {
		height += rowHeight
	}
	name := escape("Time line of sandbox " + show(c.Sandbox))
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img" aria-label="%[3]s">`+"\n", pictureWidth, height, name)
	fmt.Fprintf(&b, "<title>%s</title>\n<style>%s</style>\n", name, style)
	fmt.Fprintf(&b, `<rect class="back" width="%d" height="%d"/>`+"\n", pictureWidth, height)
	y := margin
	first := c.first()
	for _, l := range c.Lines {
		fmt.Fprintf(&b, `<text class="title" x="%d" y="%d">%s</text>`+"\n", margin, y+18, escape(c.title(l, first)))
		y = drawLine(&b, l, y+titleHeight) + gap
	}
	if text := c.forgotten(); text != "" {
		fmt.Fprintf(&b, `<text class="faint" x="%d" y="%d">%s</text>`+"\n", margin, y+16, text)
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// drawLine draws an axis and a row for each phase below y, and returns where it
// ends.
func drawLine(b *strings.Builder, l timeline.Line, y int) int {
	s := spanOf(l.Phases)
	bottom := y + axisHeight + rowHeight*len(l.Phases)
	for n := range time.Duration(mostTicks + 1) {
		t := n * tick(s.dur)
		if t > s.dur {
			break
		}
		x := s.x(s.began.Add(t))
		fmt.Fprintf(b, `<line class="grid" x1="%.1f" y1="%d" x2="%.1[1]f" y2="%[3]d"/>`+"\n", x, y+axisHeight-6, bottom)
		fmt.Fprintf(b, `<text class="faint tick" x="%.1f" y="%d">%s</text>`+"\n", x, y+14, duration(t))
	}
	y += axisHeight
	names := labels(l.Phases)
	for i, p := range l.Phases {
		s.drawPhase(b, p, names[i], y)
		y += rowHeight
	}
	return y
}

func (s span) drawPhase(b *strings.Builder, p timeline.Phase, name string, y int) {
	base := y + 15
	fmt.Fprintf(b, `<text x="%d" y="%d">%s</text>`+"\n", margin+indent*min(p.Depth, mostIndents), base, escape(name))
	at := duration(p.Start.Sub(s.began))
	long := duration(p.Dur)
	if p.Dur == 0 {
		long = "at " + at
	}
	fmt.Fprintf(b, `<text class="number" x="%d" y="%d">%s</text>`+"\n", numbers, base, long)
	from, to := s.x(p.Start), s.x(p.Start.Add(p.Dur))
	class := fmt.Sprintf("d%d", min(p.Depth, mostDepths-1))
	if p.Guest {
		class = "guest"
	}
	const top, thick = 4, 13
	switch {
	case p.Dur == 0 && s.beyond(p): // later: an arrow
		fmt.Fprintf(b, `<path class="mark" d="M%d %d l8 6.5 l-8 6.5 z">`, barsTo-8, y+top)
	case p.Dur == 0:
		fmt.Fprintf(b, `<path class="mark" d="M%.1f %d l6 6.5 l-6 6.5 l-6 -6.5 z">`, from, y+top)
	default:
		fmt.Fprintf(b, `<rect class="%s" x="%.1f" y="%d" width="%.1f" height="%d" rx="2">`, class, from, y+top, max(to-from, 1.5), thick)
	}
	closing := "rect"
	if p.Dur == 0 {
		closing = "path"
	}
	fmt.Fprintf(b, "<title>%s: at %s, for %s</title></%s>\n", escape(name), at, duration(p.Dur), closing)
}

func (s span) x(t time.Time) float64 { return barsFrom + s.share(t)*(barsTo-barsFrom) }

// tick is a round part of a time, of which there are four to mostTicks.
func tick(d time.Duration) time.Duration {
	if d < 10*time.Microsecond {
		return d
	}
	size := time.Duration(math.Pow10(int(math.Log10(float64(d)))))
	for _, n := range []time.Duration{10, 5, 2} {
		if d/(size/n) <= mostTicks {
			return size / n
		}
	}
	return size
}

func duration(d time.Duration) string {
	switch {
	case d == 0:
		return "0"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2f ms", ms(d))
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", ms(d))
	default:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
}

// escape makes text fit for an element and for an attribute.
func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
	return b.String()
}
