package qemu

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/seed-efd44b36/kata/internal/supervise"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"golang.org/x/sys/unix"
)

// evidenceLines and evidenceWidth bound what an error quotes of QEMU's messages
// and of the guest's console.
const (
	evidenceLines = 8
	evidenceWidth = 200
)

// ending is all that is known about how a machine ended.
type ending struct {
	process         supervise.Exit
	killed          bool   // by us
	reason          string // of QEMU's SHUTDOWN event, "" if there was none
	stderr, console []byte
}

// explain returns nil after an end that was asked for, else an error that
// wraps vmm.ErrGone and says what happened, as far as anyone can know.
func (e ending) explain() error {
	if e.killed && e.process.Signal == unix.SIGKILL {
		return nil
	}
	console := e.console
	if i := bytes.LastIndex(console, []byte(panicMark)); i >= 0 {
		// The stack trace that follows helps nobody here.
		console = console[:bytes.LastIndexByte(console[:i], '\n')+1]
	}
	return fmt.Errorf("%w: %s%s", vmm.ErrGone, e.cause(), evidence(e.stderr, console))
}

// panicMark is what Linux writes before the reason of a panic.
const panicMark = "Kernel panic - not syncing: "

// noProxy is what QEMU says of -fsdev proxy where it has none: 9.2 was the first
// to come without.
const noProxy = "fsdriver proxy not found"

func (e ending) cause() string {
	switch {
	case !e.process.Success() && bytes.Contains(e.stderr, []byte(noProxy)):
		return "this qemu serves no 9p as it is needed here (7.2 to 9.1 do): install virtiofsd and set hypervisor.shared_fs to \"virtio-fs\", without factory.enable_template"
	case !e.process.Success():
		return "qemu ended: " + e.process.String()
	case panicLine(e.console) != "":
		return fmt.Sprintf("the guest's kernel panicked: %q", panicLine(e.console))
	case e.reason == "guest-shutdown":
		return "the guest powered itself off"
	case e.reason == "guest-reset":
		return "the guest rebooted"
	case e.reason == "host-signal":
		return "qemu was asked to end by a signal"
	default:
		return "qemu ended: exit status 0"
	}
}

// panicLine returns the line in which the guest's kernel says why it panicked.
func panicLine(console []byte) string {
	i := bytes.LastIndex(console, []byte(panicMark))
	if i < 0 {
		return ""
	}
	line, _, _ := bytes.Cut(console[i+len(panicMark):], []byte("\n"))
	return clip(string(bytes.TrimSpace(line)))
}

// evidence quotes the ends of QEMU's messages and of the guest's console. Both
// may hold anything: a guest must not write to our terminal through an error.
func evidence(stderr, console []byte) string {
	var b strings.Builder
	quote(&b, "qemu's last words", stderr)
	quote(&b, "the guest's console", console)
	return b.String()
}

func quote(b *strings.Builder, title string, text []byte) {
	lines := lastLines(text)
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s:", title)
	for _, line := range lines {
		b.WriteString("\n  ")
		q := fmt.Sprintf("%q", clip(line))
		b.WriteString(q[1 : len(q)-1])
	}
}

func lastLines(text []byte) []string {
	var lines []string
	for line := range strings.SplitSeq(string(text), "\n") {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines[max(0, len(lines)-evidenceLines):]
}

func clip(line string) string {
	if len(line) > evidenceWidth {
		return line[:evidenceWidth] + "…"
	}
	return line
}
