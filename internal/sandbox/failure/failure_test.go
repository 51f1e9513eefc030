package failure

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

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
