// Package command is what the programs that people and engines call have in
// common: signals, and how an error becomes an exit code.
package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"

	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/guest"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// The exit codes of Docker and of shells for a command that could not be run,
// and of Docker for a failure of its own.
const (
	Failed  = 125 // the program itself failed
	Denied  = 126 // the command cannot be executed
	Missing = 127 // the command does not exist
	Piped   = 141 // nobody reads the output any more: 128 and SIGPIPE
)

// maxLine bounds a line of an error, in bytes.
const maxLine = 4000

// ExitError is an error that is only an exit code: that of a process, which has
// said itself what there was to say.
type ExitError int

// Error implements error.
func (e ExitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// ParseTail reads the value of a flag --tail. It is nil for all lines.
func ParseTail(text string) (*int, error) {
	if text == "all" {
		return nil, nil //nolint:nilnil // nil is the value for all
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("--tail %q: must be a number of lines, or all", text)
	}
	return &n, nil
}

// Program is one program.
type Program struct {
	Name string
	// Root makes the tree of commands. release gives SIGINT and SIGTERM, which
	// else end the command's context, to a command that handles them itself.
	Root func(release func()) *cobra.Command
	// Told gets the text of a failure, for a log; nil: there is none.
	Told func(text string)
	// Code is the exit code for a failure of the given verb.
	Code func(verb string) int
}

// Main runs the program and returns its exit code.
func (p Program) Main(args []string) int {
	if err := guest.SilenceRPC(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, err)
		return p.Code("")
	}
	ctx, stop := interruptible()
	defer stop()
	root := p.Root(stop)
	root.SilenceUsage, root.SilenceErrors = true, true
	root.SetArgs(args)
	tellUsage(root)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[ExitError](err); ok {
		return int(code)
	}
	verb, _, unknown := root.Find(args)
	text, code := err.Error(), 0
	if c, ok := Interrupted(ctx); ok {
		text, code = interruption(verb.Name(), text), c
	}
	if p.Told != nil {
		p.Told(printable.Text(text, maxLine))
	}
	// Names in images, and what registries answer, are part of errors.
	for i, line := range strings.Split(text, "\n") {
		if i == 0 {
			line = p.Name + ": " + line
		}
		fmt.Fprintln(os.Stderr, printable.Text(line, maxLine))
	}
	switch {
	case code != 0:
		return code
	case errors.Is(err, sandbox.ErrCommandNotFound):
		return Missing
	case errors.Is(err, sandbox.ErrCommandDenied):
		return Denied
	}
	if unknown != nil {
		return p.Code("")
	}
	return p.Code(verb.Name())
}

// interrupted is why a context has ended: a signal.
type interrupted unix.Signal

func (i interrupted) Error() string { return "interrupted by " + unix.SignalName(unix.Signal(i)) }

// Interrupted tells whether a signal has ended the context of a command, and
// the exit code that stands for it.
func Interrupted(ctx context.Context) (code int, ok bool) {
	i, ok := errors.AsType[interrupted](context.Cause(ctx))
	return 128 + int(i), ok
}

// interruptible is a context that SIGINT and SIGTERM end, until stop.
func interruptible() (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	received := make(chan os.Signal, 1)
	signal.Notify(received, unix.SIGINT, unix.SIGTERM)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case sig := <-received:
			if n, ok := sig.(unix.Signal); ok {
				cancel(interrupted(n))
			}
		case <-ctx.Done():
		}
	})
	return ctx, sync.OnceFunc(func() {
		signal.Stop(received)
		cancel(nil)
		watch.Wait()
	})
}

// interruption is what is said of a command that a signal has ended: not how
// its parts were told, but what else went wrong.
func interruption(verb, text string) string {
	said := "interrupted"
	if verb == "run" || verb == "exec" {
		said += " while starting"
	}
	lines := []string{said}
	for line := range strings.Lines(text) {
		if !strings.Contains(line, context.Canceled.Error()) && !strings.Contains(line, said) {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return strings.Join(lines, "\n")
}

// tellUsage adds to each complaint about flags and arguments what was expected.
func tellUsage(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see `%s --help`", err, cmd.CommandPath())
	})
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				usage, _, _ := strings.Cut(cmd.UseLine(), "\n")
				return fmt.Errorf("%w; usage: %s", err, usage)
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		tellUsage(c)
	}
}
