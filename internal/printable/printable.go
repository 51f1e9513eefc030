// Package printable makes what a guest, an image or a virtual machine monitor has
// said fit to be shown: nothing in it acts on a terminal or a log, and its length
// is bounded. It is pure; its input is hostile.
package printable

import (
	"regexp"
	"strings"
)

// maxLine bounds a line of Lines, in bytes.
const maxLine = 300

// Text makes text from a guest safe to print: control characters become
// spaces (newlines too), and it is cut to at most limit bytes.
func Text(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}

// controlSequence is what a terminal is told: colours, places, its reset. The
// firmware begins with some.
var controlSequence = regexp.MustCompile(`\x1b(c|\[[0-9;?=]*[A-Za-z])`)

// Line is Text, without what a terminal is told.
func Line(s string, limit int) string { return Text(controlSequence.ReplaceAllString(s, ""), limit) }

// Lines returns the last n non-empty lines of raw, made printable.
func Lines(raw []byte, n int) []string {
	var lines []string
	for l := range strings.Lines(string(raw)) {
		if l = strings.TrimSpace(Line(l, maxLine)); l != "" {
			lines = append(lines, l)
		}
	}
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return lines
}
