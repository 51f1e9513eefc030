package sandbox

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTailLines(t *testing.T) {
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
			if d := cmp.Diff(tt.want, tailLines([]byte(tt.console), tt.n)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestPanicIsTheCause(t *testing.T) {
	t.Parallel()
	lost := errors.New("the link was lost")
	for _, tt := range []struct{ name, console, want string }{
		{"none", "one\ntwo\n", "start sandbox x: the link was lost\n  guest console, last lines:\n    one\n    two"},
		{
			"a panic", "before\n[ 1.0] Kernel panic - not syncing: VFS: no root\x1b[2J\r\n[ 1.1] Call Trace:\n[ 1.2] panic+0x1/0x2\n",
			"start sandbox x: the guest's kernel panicked (VFS: no root [2J): the link was lost\n  guest console, last lines:\n    before",
		},
		{"at once, without an end", "Kernel panic - not syncing: why", "start sandbox x: the guest's kernel panicked (why): the link was lost"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := &startError{id: "x", cause: lost, tail: []byte(tt.console)}
			e.panicked()
			if d := cmp.Diff(tt.want, e.Error()); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			if !errors.Is(e, lost) {
				t.Error("the error is lost")
			}
		})
	}
}
