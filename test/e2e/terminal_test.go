//go:build integration

package e2e

import (
	"strings"
	"testing"

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
	before := tt.mode()
	tt.see(prompt)
	if !tt.raw() {
		t.Error("the terminal is not in raw mode")
	}
	tt.press("echo size $(stty size); echo $TERM; tty\n")
	tt.see("size 30 100\r\nxterm\r\n/dev/pts/0\r\n")

	// A change of the size is told by a signal, and seen.
	tt.press("sh -c \"$WATCHING\"\n")
	tt.see("watching\r\n")
	tt.resize(120, 40)
	tt.see("changed 40 120\r\n")
	tt.press("\x03")
	tt.press("echo watched $?\n")
	tt.see("watched 130\r\n")

	// Ctrl-C is for the process in the foreground, and arrives once.
	tt.press("sh -c 'echo sleeping; exec sleep 1000'\n")
	tt.see("sleeping\r\n")
	tt.press("\x03")
	tt.press("echo slept $?\n")
	tt.see("slept 130\r\n")
	tt.press("sh -c \"$COUNTING\"\n")
	tt.see("ready\r\n")
	tt.press("\x03")
	tt.see("interrupted 1\r\n")
	tt.see("counted 1\r\n")

	tt.press("exit 5\n")
	if code := tt.exit(); code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
	if tt.mode() != before {
		t.Errorf("the terminal's mode is %+v, it was %+v", tt.mode(), before)
	}
}

func TestTerminalExec(t *testing.T) {
	t.Parallel()
	id := start(t, "--network", "none", busybox, "sleep", "1000")
	tt := atTerminal(t, 90, 20, "exec", "-it", "-e", "COUNTING="+counting, id, "sh")
	before := tt.mode()
	tt.see(prompt)
	tt.press("echo size $(stty size); tty\n")
	tt.see("size 20 90\r\n/dev/pts/0\r\n")
	tt.resize(91, 21)
	poll(t, "the size changes", func() bool {
		tt.press("stty size\n")
		return strings.Contains(tt.screen.String(), "21 91")
	})
	tt.press("sh -c \"$COUNTING\"\n")
	tt.see("ready\r\n")
	tt.press("\x03")
	tt.see("counted 1\r\n")
	tt.press("exit 6\n")
	if code := tt.exit(); code != 6 {
		t.Errorf("exit code %d, want 6", code)
	}
	if tt.mode() != before {
		t.Errorf("the terminal's mode is %+v, it was %+v", tt.mode(), before)
	}
}

// TestTerminalRestored: whatever ends the container, the person gets the
// terminal back.
func TestTerminalRestored(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		end  func(t *testing.T, tt *terminal, container string)
		code int
		says string
	}{
		{"machine killed", func(t *testing.T, _ *terminal, container string) {
			t.Helper()
			if err := unix.Kill(state(t, container).VMMPID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}, 255, "virtual machine died"},
		{"SIGTERM", func(t *testing.T, tt *terminal, _ string) {
			t.Helper()
			if err := tt.cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}, 3, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			name := "restored-" + strings.ReplaceAll(tt.name, " ", "-")
			term := atTerminal(t, 80, 24, "run", "--rm", "-it", "--name", name, "--network", "none", busybox,
				"sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done")
			before := term.mode()
			term.see("ready\r\n")
			poll(t, "the terminal is in raw mode", term.raw)
			tt.end(t, term, find(t, name))
			if code := term.exit(); code != tt.code || !strings.Contains(term.screen.String(), tt.says) {
				t.Errorf("exit code %d, want %d; the screen is to tell %q", code, tt.code, tt.says)
			}
			if term.mode() != before {
				t.Errorf("the terminal's mode is %+v, it was %+v", term.mode(), before)
			}
		})
	}
}
