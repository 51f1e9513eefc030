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

func TestLine(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ why, want string }{
		{"the virtual machine died: virtual machine is gone: qemu ended: signal 9\nthe guest's console:\n  x", "the virtual machine died: qemu ended: signal 9"},
		{"the virtual machine died: the guest's kernel panicked: \"no init\x1b[2J\"", "the virtual machine died: the guest's kernel panicked: \"no init [2J\""},
		{
			"the guest's kernel panicked: \"System is deadlocked on memory\"",
			"the guest's kernel panicked: \"System is deadlocked on memory\"; if that was too little, raise the memory limits of the pod",
		},
	} {
		if got := Line(errors.New(tt.why)); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
