package oci

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/seed-efd44b36/kata/internal/sandbox/report"
)

func TestPick(t *testing.T) {
	pause := map[string]string{podType: "sandbox"}
	states := []report.Sandbox{
		{ID: "pod1", Containers: []report.Container{
			{ID: "pod1", Status: report.Running, Annotations: pause}, {ID: "web", Status: report.Running},
		}},
		{ID: "pod2", Containers: []report.Container{
			{ID: "pod2", Status: report.Running, Annotations: pause},
			{ID: "one", Status: report.Running},
			{ID: "onely", Status: report.Running},
		}},
		{ID: "dead", Containers: []report.Container{
			{ID: "dead", Status: report.Stopped, Exit: &report.Exit{Reason: "the kernel\npanicked"}},
		}},
		{ID: "empty"},
	}
	for _, tt := range []struct{ name, want, err string }{
		{"pod1", "web", ""},
		{"web", "web", ""},
		{"w", "web", ""},
		{"one", "one", ""}, // whole before a beginning
		{"onel", "onely", ""},
		{"on", "", `"on" is the beginning of several ids: one, onely`},
		{"pod", "", `"pod" is the beginning of several ids: pod1, pod2`},
		{"pod2", "", "sandbox pod2 has several containers, name one of them: one, onely"},
		{"dead", "", "no container runs in sandbox dead; container dead ended: the kernel panicked"},
		{"empty", "", "no container runs in sandbox empty"},
		{"other", "", `there is no sandbox or container "other"; ` + "`kata-runtime list` shows those that there are"},
		{"", "", `there is no sandbox or container ""; ` + "`kata-runtime list` shows those that there are"},
	} {
		sandbox, container, err := report.Pick(states, tt.name)
		var c report.Container
		if err == nil {
			c, err = target{sandbox, container}.work()
		}
		text := ""
		if err != nil {
			text = err.Error()
		}
		if c.ID != tt.want || text != tt.err {
			t.Errorf("%q: got %q, %q; want %q, %q", tt.name, c.ID, text, tt.want, tt.err)
		}
	}
}

// TestShow prints pieces of lines that a guest has written.
func TestShow(t *testing.T) {
	pieces := []string{"\x1bc\x1b[?7lfirst", "\r\nsec", "ond\a\n\n", "end"}
	var out bytes.Buffer
	err := show(t.Context(), &out, true, func(context.Context) ([]byte, bool, error) {
		p := pieces[0]
		pieces = pieces[1:]
		return []byte(p), len(pieces) == 0, nil
	})
	if want := "first\nsecond\n\nend\n"; err != nil || out.String() != want {
		t.Errorf("got %q, %v; want %q", out.String(), err, want)
	}
	out.Reset()
	long := strings.Repeat("x", 3*maxLine)
	err = show(t.Context(), &out, false, func(context.Context) ([]byte, bool, error) { return []byte(long), false, nil })
	if err != nil || out.Len() < maxLine || out.Len() > maxLine+10 {
		t.Errorf("a line without an end: %d bytes, %v", out.Len(), err)
	}
}

// FuzzShow: whatever a guest writes, and in whatever pieces it comes, nothing acts
// on the terminal and no line is endless.
func FuzzShow(f *testing.F) {
	f.Add([]byte("\x1bc\x1b[?7lSeaBIOS\r\n"), 3)
	f.Add([]byte("[    0.0] Linux\n\xff\xc2\x9b31m\u2028\n"), 1)
	f.Add(bytes.Repeat([]byte("x"), 2*maxLine+1), maxLine)
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, text []byte, piece int) {
		var out bytes.Buffer
		rest := text
		err := show(t.Context(), &out, false, func(context.Context) ([]byte, bool, error) { return rest, true, nil })
		if err != nil {
			t.Fatal(err)
		}
		w := &lines{out: &out}
		for piece = min(max(piece, 1), maxLine); len(rest) > 0; rest = rest[min(piece, len(rest)):] {
			w.write(rest[:min(piece, len(rest))])
		}
		w.end()
		for line := range strings.Lines(out.String()) {
			line = strings.TrimSuffix(line, "\n")
			if i := strings.IndexFunc(line, unicode.IsControl); i >= 0 || !utf8.ValidString(line) || len(line) > maxLine+len("…") {
				t.Errorf("%d bytes, a control character at %d: %.200q", len(line), i, line)
			}
		}
	})
}

func TestLastLines(t *testing.T) {
	for _, tt := range []struct {
		text string
		n    int
		want string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc", 2, "b\nc"},
		{"a\nb\n", 9, "a\nb\n"},
		{"a\n", 1, "a\n"},
		{"a\n\n", 1, "\n"},
		{"a\n", 0, ""},
		{"", 3, ""},
	} {
		if got := string(lastLines([]byte(tt.text), tt.n)); got != tt.want {
			t.Errorf("%d of %q: got %q, want %q", tt.n, tt.text, got, tt.want)
		}
	}
}
