package config

import (
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"unicode"
)

// Print writes the effective configuration as TOML that Load reads back, each
// value with the place it came from in a comment.
func (l *Loaded) Print(w io.Writer) error {
	type line struct{ key, text string }
	var lines []line
	width := 0
	for _, s := range settings(&l.Config) {
		text := lastPart(s.key) + " = " + tomlValue(s.value)
		lines = append(lines, line{s.key, text})
		width = max(width, len(text))
	}
	width = min(width, 60)

	var b strings.Builder
	table := ""
	for _, ln := range lines {
		if t, _, _ := strings.Cut(ln.key, "."); t != table {
			if table != "" {
				b.WriteByte('\n')
			}
			fmt.Fprintf(&b, "[%s]\n", t)
			table = t
		}
		fmt.Fprintf(&b, "%-*s  # %s\n", width, ln.text, strings.Map(printable, l.Origin[ln.key]))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printable keeps a comment on its line, whatever the file's name is.
func printable(r rune) rune {
	if unicode.IsControl(r) {
		return '?'
	}
	return r
}

// tomlValue writes the value of a setting.
func tomlValue(v reflect.Value) string {
	switch v.Kind() {
	case reflect.String:
		return tomlString(v.String())
	case reflect.Slice:
		var parts []string
		for i := range v.Len() {
			parts = append(parts, tomlString(v.Index(i).String()))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	default:
		return strconv.FormatInt(v.Int(), 10)
	}
}

// tomlString quotes s; strconv.Quote has escapes that TOML has not.
func tomlString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case unicode.IsControl(r):
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
