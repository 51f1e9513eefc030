package printable

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLines(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, console string
		n             int
		want          []string
	}{
		{"nothing", "", 3, nil},
		{"empty lines", "\n \n\r\n", 3, nil},
		{"the last ones", "one\ntwo\r\nthree", 2, []string{"two", "three"}},
		{"firmware", "\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1)\r\nBooting\x1b[1;31m from ROM\n", 5, []string{"SeaBIOS (version 1)", "Booting from ROM"}},
		{"other control characters", "a\x07b\x1b]0;title\x07c\xff", 1, []string{"a b ]0;title c?"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if d := cmp.Diff(tt.want, Lines([]byte(tt.console), tt.n)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}
