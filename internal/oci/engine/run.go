package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/command"
	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/spf13/cobra"
)

// maxReason is how much of the reason of an end is shown, in bytes.
const maxReason = 4000

// reasonTimeout is what a sandbox gets to tell why a process has ended.
const reasonTimeout = 5 * time.Second

func (a *Verbs) runCommand(release func()) *cobra.Command {
	var fl createFlags
	cmd := &cobra.Command{
		Use:   "run [flags] CONTAINER",
		Short: "Create and start a container, and remove it when it has ended",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd.Context(), args[0], fl, release)
		},
	}
	fl.add(cmd)
	f := cmd.Flags()
	f.BoolVarP(&fl.detach, "detach", "d", false, "return when it runs")
	f.BoolVar(&fl.keep, "keep", false, "do not remove it when it has ended")
	f.BoolVar(&fl.noSubreaper, "no-subreaper", false, "accepted: kata-runtime is none")
	return cmd
}

// run creates and starts a container. In the foreground it ends with us.
func (a *Verbs) run(ctx context.Context, id string, fl createFlags, release func()) error {
	b, err := a.create(ctx, id, fl)
	if err != nil {
		return err
	}
	if err := a.start(ctx, b.entry, b.rec); err != nil {
		return errors.Join(err, b.abandon(ctx))
	}
	if fl.detach {
		return b.leave()
	}
	code, err := b.attend(release)
	if err != nil {
		return errors.Join(err, b.abandon(ctx))
	}
	a.tellReason(ctx, b)
	b.undo.Disarm()
	if fl.keep {
		err = b.client.Disown()
	} else {
		err = a.destroy(ctx, b.entry, b.rec)
	}
	_ = b.client.Close()
	b.entry.Unlock()
	if err == nil && code != 0 {
		err = command.ExitError(code)
	}
	return err
}

// tellReason tells why a container has ended that did not do so by itself.
func (a *Verbs) tellReason(ctx context.Context, b *birth) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reasonTimeout)
	defer cancel()
	resp, err := b.client.Wait(ctx, &proxyv1.WaitRequest{Container: b.id})
	text := resp.GetReason()
	if err != nil {
		text = proxy.Explain(err).Error()
	}
	if text != "" {
		fmt.Fprintln(a.ErrOut, "kata-runtime: "+printable.Text(text, maxReason))
	}
}

// exitOf turns the end of a process into the end of this program.
func (a *Verbs) exitOf(resp *proxyv1.WaitResponse) error {
	if resp.GetReason() != "" {
		fmt.Fprintln(a.ErrOut, "kata-runtime: "+printable.Text(resp.GetReason(), maxReason))
	}
	if code := resp.GetExitCode(); code != 0 {
		return command.ExitError(code)
	}
	return nil
}
