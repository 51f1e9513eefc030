// Package failure tells why a sandbox did not start, whole: what failed, how the
// VMM ended, what it and the guest's console said last, and what to do next; and
// in a line, why one ended. It is pure; much of what it is given is the guest's
// word.
package failure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/vmm"
)

// Start is what is known of a failure to start.
type Start struct {
	ID string
	// Cause is what failed, which the error wraps.
	Cause error
	// Exit is how the VMM ended, nil while it runs.
	Exit *vmm.Exit
	// Console is what came out of the guest's console last.
	Console []byte
}

// remedies map a word in a failure's text to a next step for a person.
var remedies = []struct{ word, step string }{ //nolint:gochecknoglobals // a constant table
	{"kernel panicked", "check hypervisor.kernel and kernel_params, or remove them to use the default"},
	{"did not answer", "run `kata-runtime check`; under emulation on a busy machine raise boot_timeout in the configuration"},
	{"Cannot allocate memory", "free memory, or ask for less: the memory limit (-m) if one is given, else hypervisor.default_memory"},
	{"No space left", "free space on the file system of runtime.cache_dir and state_dir"},
	{"no such file", "run `kata-runtime check` to see which part is missing"},
}

// maxLine bounds Line, in bytes.
const maxLine = 400

// Line tells in one line why a sandbox ended, for where there is no room for more.
func Line(why error) string {
	line, _, _ := strings.Cut(why.Error(), "\n")
	line = printable.Text(strings.ReplaceAll(line, vmm.ErrGone.Error()+": ", ""), maxLine)
	if strings.Contains(line, "kernel panicked") && strings.Contains(line, "memory") {
		line += "; if that was too little, raise the memory limits of the pod"
	}
	return line
}

// Death is the reason of a sandbox's end with its machine, of which nobody asked.
func Death(e vmm.Exit) error {
	if e.Err == nil {
		e.Err = fmt.Errorf("the guest powered off: %w", vmm.ErrGone)
	}
	return fmt.Errorf("the virtual machine died: %w", e.Err)
}

// Of is the error of a failure to start with what the machine, which may be nil, has
// to tell.
func Of(id string, cause error, m vmm.Machine) error {
	f := Start{ID: id, Cause: cause}
	if m == nil {
		return f.Error()
	}
	f.Console = m.Console().Bytes()
	select {
	case <-m.Done():
		e := m.Kill(context.Background())
		f.Exit, f.Console = &e, e.Console
	default:
	}
	return f.Error()
}

// Error makes an error of it.
func (f Start) Error() error {
	se := &startError{id: f.ID, cause: f.Cause, exit: f.Exit, tail: f.Console}
	se.panicked()
	text := se.Error()
	for _, r := range remedies {
		if strings.Contains(text, r.word) {
			se.remedy = r.step
			break
		}
	}
	if se.remedy == "" {
		se.remedy = "run `kata-runtime check`"
	}
	return se
}

// startError is a failure to start, told whole: what failed, how the VMM
// ended, what it and the guest's console said last, and what to do next.
type startError struct {
	id     string
	cause  error
	exit   *vmm.Exit // nil while the VMM runs
	tail   []byte    // console
	remedy string
}

func (e *startError) Unwrap() error { return e.cause }

// panicked looks for a panic of the guest's kernel in the console's output. If
// there is one, it is the cause, and the way to it in the kernel is left out.
func (e *startError) panicked() {
	before, after, found := bytes.Cut(e.tail, []byte("Kernel panic - not syncing: "))
	if !found {
		return
	}
	why, _, _ := bytes.Cut(after, []byte("\n"))
	e.tail = before[:bytes.LastIndexByte(before, '\n')+1]
	if !strings.Contains(e.cause.Error(), "kernel panicked") { // else the VMM has told it
		e.cause = fmt.Errorf("the guest's kernel panicked (%s): %w", printable.Text(strings.TrimSpace(string(why)), 200), e.cause)
	}
}

func (e *startError) Error() string {
	var b strings.Builder
	cause := e.cause.Error()
	fmt.Fprintf(&b, "start sandbox %s: %s", e.id, cause)
	section := func(name string, raw []byte) {
		lines := printable.Lines(raw, 12)
		if len(lines) == 0 || strings.Contains(cause, lines[len(lines)-1]) { // the VMM has quoted it
			return
		}
		fmt.Fprintf(&b, "\n  %s:", name)
		for _, l := range lines {
			b.WriteString("\n    " + l)
		}
	}
	if e.exit != nil {
		if e.exit.Err != nil && !errors.Is(e.cause, vmm.ErrGone) {
			fmt.Fprintf(&b, "\n  virtual machine: %s", printable.Text(e.exit.Err.Error(), 500))
		}
		section("VMM's error output", e.exit.Stderr)
	}
	section("guest console, last lines", e.tail)
	if e.remedy != "" {
		fmt.Fprintf(&b, "\n  next: %s", e.remedy)
	}
	return b.String()
}
