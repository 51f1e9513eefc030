package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/oci/record"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/runflags"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// shimTimeout is what a kata-shim gets to end after its process has.
const shimTimeout = 10 * time.Second

func (a *Verbs) startCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "start CONTAINER",
		Short: "Start the process of a created container",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[0], func(e *record.Entry, r record.Record, st report.Status) error {
				switch st {
				case report.Created:
					return a.start(cmd.Context(), e, r)
				case report.Stopped:
					return errors.New("cannot start a container that has stopped")
				case report.Paused:
					return errors.New("cannot start a container in the paused state")
				case report.Creating:
					return errors.New("cannot start a container that has not been created in full")
				default:
					return errors.New("cannot start an already running container")
				}
			})
		},
	}
}

// start starts a container that has been created.
func (a *Verbs) start(ctx context.Context, e *record.Entry, r record.Record) error {
	c, err := a.dial(ctx, r)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Start(ctx, &proxyv1.StartRequest{Container: r.ID}); err != nil {
		return explainCommand(proxy.Explain(err))
	}
	hooks := r.Poststart
	if len(hooks) == 0 {
		return nil
	}
	r.Poststart = nil
	err = e.Write(r)
	// The process runs already: what such a hook says changes nothing.
	if herr := runHooks(ctx, hooks, r, specs.StateRunning); herr != nil {
		a.Warn(fmt.Errorf("poststart hooks: %w", herr))
	}
	return err
}

func (a *Verbs) killCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "kill [flags] CONTAINER [SIGNAL]",
		Short: "Send a signal to a container's first process (default SIGTERM)",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, st, err := a.findContainer(args[0])
			if err != nil {
				return err
			}
			sig := int(unix.SIGTERM)
			if len(args) > 1 {
				if sig, err = parseSignal(args[1]); err != nil {
					return err
				}
			}
			switch {
			case st == report.Stopped && all:
				return nil // as with runc
			case st == report.Stopped, st == report.Creating:
				return errNotRunning
			case sig == 0:
				return nil // it asks whether there is a process
			}
			return a.signal(cmd.Context(), r, sig, all)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "send it to all processes of the container")
	return cmd
}

// parseSignal reads a signal's name or number; 0 asks only.
func parseSignal(text string) (int, error) {
	if text == "0" {
		return 0, nil
	}
	sig, err := runflags.ParseSignal(text)
	if err != nil {
		return 0, fmt.Errorf("unknown signal %q", text)
	}
	return sig, nil
}

// signal sends a signal to the first process of a container, or all.
func (a *Verbs) signal(ctx context.Context, r record.Record, sig int, all bool) error {
	c, err := a.dial(ctx, r)
	if errors.Is(err, sandbox.ErrNotFound) {
		return errNotRunning
	}
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Signal(ctx, &proxyv1.SignalRequest{Container: r.ID, Signal: uint32(sig), All: all})
	if err = proxy.Explain(err); errors.Is(err, sandbox.ErrDead) {
		return errNotRunning
	}
	return err
}

func (a *Verbs) deleteCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "delete [flags] CONTAINER",
		Short: "Remove a container that has stopped, or was not started",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := a.delete(cmd.Context(), args[0], force)
			if force && errors.Is(err, record.ErrNotFound) {
				return nil
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill it first if it runs; a container that does not exist is no error")
	return cmd
}

func (a *Verbs) delete(ctx context.Context, id string, force bool) error {
	e, err := a.containers().Lock(ctx, id)
	if err != nil {
		return err
	}
	defer e.Unlock()
	r, st, err := a.findContainer(id)
	if errors.Is(err, record.ErrNotFound) {
		return e.Remove() // nothing of it was made but its place
	}
	if err != nil && force && r.ID == "" {
		return a.dropUnread(ctx, e, id, err)
	}
	if err != nil && !force {
		return err
	}
	if !force && st != report.Stopped && st != report.Created && st != report.Creating {
		return fmt.Errorf("cannot delete container %s that is not stopped: %s", id, st)
	}
	return a.destroy(ctx, e, r)
}

// dropUnread removes a container whose record cannot be read, for that reason. It does
// not tell the sandbox: what has the id may be another engine's, and is not ended.
func (a *Verbs) dropUnread(ctx context.Context, e *record.Entry, id string, reason error) error {
	names := []string{id, a.hashedName(id)}
	states, err := report.List(a.Conf.Runtime.StateDir)
	if err != nil {
		return errors.Join(reason, err)
	}
	for _, st := range states {
		if slices.ContainsFunc(st.Containers, func(c report.Container) bool { return c.ID == id }) {
			names = append(names, st.ID)
		}
	}
	for _, name := range names {
		alive, err := cleanup.Collect(ctx, filepath.Join(a.Conf.Runtime.StateDir, name), slog.New(slog.DiscardHandler), proxy.Releasers(a.Conf))
		if err != nil {
			return errors.Join(reason, err)
		}
		if alive {
			return fmt.Errorf("%[1]w; the sandbox %[2]s lives and may be its: if it is, end it by SIGKILL to its owner (`pgrep -f -- '--id %[2]s'`), and delete the container again, or run `kata gc`", reason, name)
		}
	}
	return e.Remove()
}

// destroy ends what there is of a container, and removes it.
func (a *Verbs) destroy(ctx context.Context, e *record.Entry, r record.Record) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if err := a.take(ctx, r); err != nil {
		return fmt.Errorf("delete container %s: %w", r.ID, err)
	}
	shimCtx, cancel := context.WithTimeout(ctx, shimTimeout)
	defer cancel()
	if err := r.Shim.End(shimCtx); err != nil {
		return fmt.Errorf("delete container %s: kata-shim: %w", r.ID, err)
	}
	a.poststop(ctx, r)
	return e.Remove()
}

// poststop runs the hooks for a container that has gone. If they fail, it has so
// all the same.
func (a *Verbs) poststop(ctx context.Context, r record.Record) {
	if err := runHooks(ctx, r.Poststop, r, specs.StateStopped); err != nil {
		a.Warn(fmt.Errorf("poststop hooks: %w", err))
	}
}

// take takes a container out of its sandbox, which ends if it was the last there.
func (a *Verbs) take(ctx context.Context, r record.Record) error {
	if r.Sandbox == "" {
		return nil
	}
	c, err := a.dial(ctx, r)
	if err != nil {
		return a.collect(ctx, r.Sandbox)
	}
	defer c.Close()
	resp, err := c.Delete(ctx, &proxyv1.DeleteRequest{Container: r.ID})
	switch err = proxy.Explain(err); {
	case errors.Is(err, sandbox.ErrDead): // it is about to end
		return a.collect(ctx, r.Sandbox)
	case err != nil:
		return err
	case resp.GetEnding():
		return a.collect(ctx, r.Sandbox)
	}
	return nil
}

// collect returns when a sandbox that ends has gone, and with it what it left, should
// its owner have died.
func (a *Verbs) collect(ctx context.Context, name string) error {
	alive, err := proxy.AwaitEnd(ctx, a.Conf, name)
	if alive {
		return fmt.Errorf("sandbox %s does not end: %w", name, err)
	}
	return err
}
