//go:build integration

package e2e

import (
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// prompt is busybox's for root in the root directory.
const prompt = "/ # "

// counting counts the interrupts that it gets, and takes some time.
const counting = `n=0; trap 'n=$((n+1)); echo interrupted $n' INT; echo ready; i=0; while [ $i -lt 20 ]; do sleep 0.1; i=$((i+1)); done; echo "counted $n"`

// watching tells of each change of the terminal's size until it is interrupted.
const watching = `trap 'echo changed $(stty size)' WINCH; echo watching; while :; do sleep 0.1; done`

func TestTerminal(t *testing.T) {
	t.Parallel()
	tt := atTerminal(t, 100, 30, "run", "--rm", "-it", "--network", "none", "-e", "COUNTING="+counting, "-e", "WATCHING="+watching, busybox, "sh")
	before := tt.Mode()
	tt.See(prompt)
	if !tt.Raw() {
		t.Error("the terminal is not in raw mode")
	}
	tt.Press("echo size $(stty size); echo $TERM; tty\n")
	tt.See("size 30 100\r\nxterm\r\n/dev/pts/0\r\n")

	// A change of the size is told by a signal, and seen.
	tt.Press("sh -c \"$WATCHING\"\n")
	tt.See("watching\r\n")
	tt.Resize(120, 40)
	tt.See("changed 40 120\r\n")
	tt.Press("\x03")
	tt.Press("echo watched $?\n")
	tt.See("watched 130\r\n")

	// Ctrl-C is for the process in the foreground, and arrives once.
	tt.Press("sh -c 'echo sleeping; exec sleep 1000'\n")
	tt.See("sleeping\r\n")
	tt.Press("\x03")
	tt.Press("echo slept $?\n")
	tt.See("slept 130\r\n")
	tt.Press("sh -c \"$COUNTING\"\n")
	tt.See("ready\r\n")
	tt.Press("\x03")
	tt.See("interrupted 1\r\n")
	tt.See("counted 1\r\n")

	tt.Press("exit 5\n")
	if code := tt.Exit(); code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
	if tt.Mode() != before {
		t.Errorf("the terminal's mode is %+v, it was %+v", tt.Mode(), before)
	}
}

func TestTerminalExec(t *testing.T) {
	t.Parallel()
	id := start(t, "--network", "none", busybox, "sleep", "1000")
	tt := atTerminal(t, 90, 20, "exec", "-it", "-e", "COUNTING="+counting, id, "sh")
	before := tt.Mode()
	tt.See(prompt)
	tt.Press("echo size $(stty size); tty\n")
	tt.See("size 20 90\r\n/dev/pts/0\r\n")
	tt.Resize(91, 21)
	harness.Poll(t, "the size changes", func() bool {
		tt.Press("stty size\n")
		return strings.Contains(tt.Screen.String(), "21 91")
	})
	tt.Press("sh -c \"$COUNTING\"\n")
	tt.See("ready\r\n")
	tt.Press("\x03")
	tt.See("counted 1\r\n")
	tt.Press("exit 6\n")
	if code := tt.Exit(); code != 6 {
		t.Errorf("exit code %d, want 6", code)
	}
	if tt.Mode() != before {
		t.Errorf("the terminal's mode is %+v, it was %+v", tt.Mode(), before)
	}
}

// TestTerminalRestored: whatever ends the container, the person gets the
// terminal back.
func TestTerminalRestored(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		end  func(t *testing.T, tt *harness.Terminal, container string)
		code int
		says string
	}{
		{"machine killed", func(t *testing.T, _ *harness.Terminal, container string) {
			t.Helper()
			if err := unix.Kill(state(t, container).VMMPID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}, 255, "virtual machine died"},
		{"SIGTERM", func(t *testing.T, tt *harness.Terminal, _ string) {
			t.Helper()
			if err := tt.Cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}, 3, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			name := "restored-" + strings.ReplaceAll(tt.name, " ", "-")
			term := atTerminal(t, 80, 24, "run", "--rm", "-it", "--name", name, "--network", "none", busybox,
				"sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done")
			before := term.Mode()
			term.See("ready\r\n")
			harness.Poll(t, "the terminal is in raw mode", term.Raw)
			tt.end(t, term, find(t, name))
			if code := term.Exit(); code != tt.code || !strings.Contains(term.Screen.String(), tt.says) {
				t.Errorf("exit code %d, want %d; the screen is to tell %q", code, tt.code, tt.says)
			}
			if term.Mode() != before {
				t.Errorf("the terminal's mode is %+v, it was %+v", term.Mode(), before)
			}
		})
	}
}

// atTerminal starts `kata` with a terminal of the size as its controlling one.
func atTerminal(t *testing.T, columns, rows uint16, args ...string) *harness.Terminal {
	t.Helper()
	return harness.AtTerminal(t, env.Command(t.Context(), "kata", args...), columns, rows)
}
