package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/ttrpc"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The kinds of errors a caller can tell apart with errors.Is.
var (
	// ErrNotFound: no such container or process.
	ErrNotFound = errors.New("not found")
	// ErrExists: the id is taken.
	ErrExists = errors.New("already exists")
	// ErrInvalid: the request itself is wrong.
	ErrInvalid = errors.New("invalid argument")
	// ErrState: not possible in the present state.
	ErrState = errors.New("wrong state")
	// ErrDead: the sandbox has ended.
	ErrDead = errors.New("sandbox has ended")
	// ErrCommandNotFound: the command does not exist in the container.
	ErrCommandNotFound = errors.New("command not found")
	// ErrCommandDenied: the command exists but cannot be executed.
	ErrCommandDenied = errors.New("command cannot be executed")
)

var (
	// errNoAnswer: a call to the guest's agent took too long.
	errNoAnswer = errors.New("the guest's agent did not answer in time")
	// errLinkLost: the agent, or whatever plays its part, has hung up.
	errLinkLost = errors.New("the link to the guest's agent was lost")
)

// guestError is what the guest answered: its text is the guest's, so it is
// cut to a sane length and freed of control characters before anyone prints it.
type guestError struct {
	kind error
	text string
}

func (e *guestError) Error() string { return e.text }
func (e *guestError) Unwrap() error { return e.kind }

// fromGuest turns the error of a call to the agent into one of ours. starting
// tells that the call was to run a command, where "not found" means the command.
func fromGuest(err error, starting bool) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	switch {
	case ok:
	case errors.Is(err, context.DeadlineExceeded):
		return errNoAnswer // says it better
	case errors.Is(err, ttrpc.ErrClosed) || errors.Is(err, context.Canceled):
		return err // the consequence of another failure, see orDead
	default:
		return fmt.Errorf("the guest's agent does not keep to the protocol: %w", err)
	}
	ge := &guestError{text: Printable(st.Message(), 1024)}
	switch {
	case st.Code() == codes.NotFound && starting:
		ge.kind = ErrCommandNotFound
	case st.Code() == codes.PermissionDenied && starting:
		ge.kind = ErrCommandDenied
	case st.Code() == codes.NotFound:
		ge.kind = ErrNotFound
	case st.Code() == codes.AlreadyExists:
		ge.kind = ErrExists
	case st.Code() == codes.InvalidArgument:
		ge.kind = ErrInvalid
	case st.Code() == codes.FailedPrecondition:
		ge.kind = ErrState
	default:
		return fmt.Errorf("%s (%s)", ge.text, st.Code())
	}
	return ge
}

// Printable makes text from a guest safe to print: control characters become
// spaces (newlines too), and it is cut to at most limit bytes.
func Printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}

// controlSequence is what a terminal is told: colours, places, its reset. The
// firmware begins with some.
var controlSequence = regexp.MustCompile(`\x1b(c|\[[0-9;?=]*[A-Za-z])`)

// tailLines returns the last n non-empty lines of raw, made printable.
func tailLines(raw []byte, n int) []string {
	var lines []string
	for l := range strings.Lines(controlSequence.ReplaceAllString(string(raw), "")) {
		if l = strings.TrimSpace(Printable(l, 300)); l != "" {
			lines = append(lines, l)
		}
	}
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return lines
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
		e.cause = fmt.Errorf("the guest's kernel panicked (%s): %w", Printable(strings.TrimSpace(string(why)), 200), e.cause)
	}
}

func (e *startError) Error() string {
	var b strings.Builder
	cause := e.cause.Error()
	fmt.Fprintf(&b, "start sandbox %s: %s", e.id, cause)
	section := func(name string, raw []byte) {
		lines := tailLines(raw, 12)
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
			fmt.Fprintf(&b, "\n  virtual machine: %s", Printable(e.exit.Err.Error(), 500))
		}
		section("VMM's error output", e.exit.Stderr)
	}
	section("guest console, last lines", e.tail)
	if e.remedy != "" {
		fmt.Fprintf(&b, "\n  next: %s", e.remedy)
	}
	return b.String()
}
