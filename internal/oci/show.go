package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/command"
	"github.com/seed-efd44b36/kata/internal/owner"
	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/spf13/cobra"
)

const (
	// lookInterval is how often somebody who follows looks for more.
	lookInterval = 300 * time.Millisecond
	// maxLine bounds a line that is shown, in bytes.
	maxLine = 16 << 10
)

func (a *app) consoleCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "console [flags] SANDBOX",
		Short: "Print what the guest's kernel and agent have written to its console",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, c, err := a.dial(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			return show(cmd.Context(), a.out, follow, consoleOf(c, a.errOut))
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the sandbox ends")
	return cmd
}

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	tail := "all"
	cmd := &cobra.Command{
		Use:   "logs [flags] SANDBOX",
		Short: "Print the log of a sandbox's owner, and with runtime.debug that of the guest's agent",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			last, err := command.ParseTail(tail)
			if err != nil {
				return err
			}
			t, err := a.find(args[0])
			if err != nil {
				return err
			}
			f, err := os.Open(filepath.Join(a.conf.Runtime.StateDir, t.sandbox.ID, owner.LogFile))
			if err != nil {
				return fmt.Errorf("log of sandbox %s: %w", t.sandbox.ID, err)
			}
			defer f.Close()
			ended := func() bool {
				st, err := report.Read(a.conf.Runtime.StateDir, t.sandbox.ID)
				return err != nil || !st.Alive
			}
			return show(cmd.Context(), a.out, follow, logOf(f, last, ended))
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the sandbox ends")
	cmd.Flags().StringVarP(&tail, "tail", "n", tail, "only so many of the last `lines`, or all")
	return cmd
}

// source gives what has come since it was last asked, and tells whether that was
// the last.
type source func(ctx context.Context) (b []byte, over bool, err error)

// show prints what a source has, and if it is to be followed, will have. What a
// guest has written must not act on the terminal.
func show(ctx context.Context, out io.Writer, follow bool, more source) error {
	w := &lines{out: out}
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		b, over, err := more(ctx)
		w.write(b)
		if over || !follow || err != nil {
			w.end()
			return errors.Join(w.err, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if code, ok := command.Interrupted(ctx); ok {
				return command.ExitError(code) // which is how following ends
			}
			return ctx.Err()
		}
	}
}

// consoleOf is the guest's console. What is lost is told to errOut.
func consoleOf(c *proxy.Client, errOut io.Writer) source {
	var from int64
	return func(ctx context.Context) ([]byte, bool, error) {
		resp, err := c.Console(ctx, &proxyv1.ConsoleRequest{From: from})
		if err != nil {
			select {
			case <-c.Gone(): // the end that was waited for
				return nil, true, nil
			default:
				return nil, true, proxy.Explain(err)
			}
		}
		if lost := resp.GetNext() - int64(len(resp.GetOutput())) - from; lost > 0 {
			fmt.Fprintf(errOut, "kata-runtime: %d bytes before this are not kept\n", lost)
		}
		from = resp.GetNext()
		return resp.GetOutput(), resp.GetOver(), nil
	}
}

// logOf is a log that grows, or only so many of its last lines.
func logOf(f *os.File, last *int, ended func() bool) source {
	first := true
	return func(context.Context) ([]byte, bool, error) {
		over := ended() // before the last look at it
		b, err := io.ReadAll(f)
		if first && last != nil {
			b = lastLines(b, *last)
		}
		first = false
		return b, over, err
	}
}

// lastLines are the last n lines of b.
func lastLines(b []byte, n int) []byte {
	end := len(bytes.TrimSuffix(b, []byte("\n")))
	if n == 0 {
		return nil
	}
	for range n {
		if end = bytes.LastIndexByte(b[:end], '\n'); end < 0 {
			return b
		}
	}
	return b[end+1:]
}

// lines prints whole lines, without what a terminal would act on.
type lines struct {
	out  io.Writer
	rest []byte // the beginning of a line
	err  error
}

func (l *lines) write(b []byte) {
	l.rest = append(l.rest, b...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found && len(l.rest) < maxLine {
			return
		}
		l.rest = rest
		l.print(line)
	}
}

// end prints a line that has not been ended.
func (l *lines) end() {
	if len(l.rest) > 0 {
		l.print(l.rest)
		l.rest = nil
	}
}

func (l *lines) print(line []byte) {
	if l.err == nil {
		_, l.err = fmt.Fprintln(l.out, strings.TrimRight(printable.Line(string(line), maxLine), " "))
	}
}
