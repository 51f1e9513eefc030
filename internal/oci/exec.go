package oci

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/attach"
	"github.com/seed-efd44b36/kata/internal/command"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/spec"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// execFlags are those of exec.
type execFlags struct {
	tty  bool
	user string
}

func (a *app) execCommand(release func()) *cobra.Command {
	var fl execFlags
	cmd := &cobra.Command{
		Use:   "exec [flags] SANDBOX|CONTAINER [COMMAND [ARG...]]",
		Short: "Run a command, or a shell, in a container of any sandbox",
		Long: `Run a command in a container that runs, whichever program started it, with the
environment of the container's own process. Without a command it is a shell,
which has a terminal where there is one here.

A pod is named by its id, if it has only one container, else the container. The
first letters of an id are enough.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := a.find(args[0])
			if err != nil {
				return err
			}
			return a.exec(cmd.Context(), t, args[1:], fl, release)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&fl.tty, "tty", "t", false, "give the command a terminal")
	cmd.Flags().StringVarP(&fl.user, "user", "u", "", "run it as this user (UID or UID:GID)")
	return cmd
}

func (a *app) exec(ctx context.Context, t target, args []string, fl execFlags, release func()) error {
	ct, err := t.work()
	if err != nil {
		return err
	}
	if len(args) == 0 {
		args = []string{"sh"}
		fl.tty = fl.tty || term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd()))
	}
	p, err := execProcess(ct.Bundle, args, fl)
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", ct.ID, err)
	}
	c, err := proxy.Dial(ctx, a.conf.Runtime.StateDir, t.sandbox.ID)
	if err != nil {
		return err
	}
	defer c.Close()
	s := &attach.Session{
		Client: c, Container: ct.ID, Exec: "operator-" + rand.Text(),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, TTY: fl.tty, Signals: true,
	}
	resp, err := s.RunExec(ctx, p, release)
	if errors.Is(err, attach.ErrOutputClosed) {
		return command.ExitError(command.Piped)
	}
	return errors.Join(a.exitOf(resp), err)
}

// execProcess is the process of an exec: that of the container in the bundle,
// with what is asked for.
func execProcess(bundle string, args []string, fl execFlags) (*specs.Process, error) {
	sp, err := spec.Load(bundle)
	if err != nil {
		return nil, err
	}
	p := sp.Process
	p.Args, p.Terminal, p.ConsoleSize = args, fl.tty, nil
	hasTerm := slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") })
	if fl.tty && !hasTerm {
		p.Env = append(p.Env, "TERM=xterm")
	}
	if fl.user == "" {
		return p, nil
	}
	uid, gid, both := strings.Cut(fl.user, ":")
	if !both {
		gid = "0"
	}
	for _, id := range []struct {
		text string
		to   *uint32
	}{{uid, &p.User.UID}, {gid, &p.User.GID}} {
		n, err := strconv.ParseUint(id.text, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %q: must be UID or UID:GID, in numbers", fl.user)
		}
		*id.to = uint32(n)
	}
	p.User.AdditionalGids = nil
	return p, nil
}
