package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/runflags"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func (a *app) psCommand() *cobra.Command {
	var all, quiet, long, asJSON bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List containers",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			records, err := a.containers.list()
			if err != nil {
				return err
			}
			return a.printContainers(records, all, quiet, long, asJSON)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, "show stopped containers too")
	f.BoolVarP(&quiet, "quiet", "q", false, "show ids only")
	f.BoolVar(&long, "no-trunc", false, "show whole ids and commands")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) printContainers(records []record, all, quiet, long, asJSON bool) error {
	type row struct {
		record
		Status string `json:"status"`
	}
	rows := []row{}
	for _, r := range records {
		c := a.containers.condition(r)
		if all || c.running() {
			rows = append(rows, row{record: r, Status: c.String()})
		}
	}
	if asJSON {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		return enc.Encode(rows)
	}
	if quiet {
		for _, r := range rows {
			id := short(r.ID)
			if long {
				id = r.ID
			}
			fmt.Fprintln(a.out, id)
		}
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "CONTAINER ID\tIMAGE\tCOMMAND\tCREATED\tSTATUS\tPORTS\tNAMES")
	for _, r := range rows {
		id, command := short(r.ID), strings.Join(r.Command, " ")
		if long {
			id = r.ID
		} else if len(command) > 24 {
			command = command[:23] + "…"
		}
		fmt.Fprintf(w, "%s\t%s\t%q\t%s ago\t%s\t%s\t%s\n", id, r.Image, command, age(r.Created), r.Status, strings.Join(r.Ports, ", "), r.Name)
	}
	return w.Flush()
}

// each runs do for every container named in args and tells of all failures.
func (a *app) each(refs []string, do func(record) error) error {
	var errs []error
	for _, ref := range refs {
		r, err := a.containers.find(ref)
		if err == nil {
			err = do(r)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(a.out, ref)
	}
	return errors.Join(errs...)
}

// dial connects to the container's kata-proxy; the error says when it is not
// running.
func (a *app) dial(ctx context.Context, r record) (*proxy.Client, error) {
	if c := a.containers.condition(r); !c.running() {
		return nil, fmt.Errorf("container %s is not running: it is %s", r.Name, c)
	}
	return proxy.Dial(ctx, a.conf.Runtime.StateDir, r.ID)
}

func (a *app) stopCommand() *cobra.Command {
	var seconds int
	cmd := &cobra.Command{
		Use:   "stop [flags] CONTAINER...",
		Short: "Stop containers: SIGTERM, and SIGKILL after a time",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return a.each(refs, func(r record) error { return a.stop(cmd.Context(), r, time.Duration(seconds)*time.Second) })
		},
	}
	cmd.Flags().IntVarP(&seconds, "time", "t", 10, "seconds to wait before SIGKILL")
	return cmd
}

// stop ends a container and returns when its sandbox has gone.
func (a *app) stop(ctx context.Context, r record, grace time.Duration) error {
	if !a.containers.condition(r).running() {
		return nil // as docker stop: nothing to do is no error
	}
	c, err := a.dial(ctx, r)
	if err != nil {
		return err
	}
	defer c.Close()
	if grace > 0 {
		if _, err := c.Signal(ctx, &proxyv1.SignalRequest{Container: r.ID, Signal: uint32(r.StopSignal)}); err != nil {
			return fmt.Errorf("stop container %s: %w", r.Name, proxy.Explain(err))
		}
		waitCtx, cancel := context.WithTimeout(ctx, grace)
		_, err = c.Wait(waitCtx, &proxyv1.WaitRequest{Container: r.ID})
		cancel()
	}
	if grace == 0 || err != nil {
		if _, err := c.Signal(ctx, &proxyv1.SignalRequest{Container: r.ID, Signal: uint32(unix.SIGKILL)}); err != nil {
			return fmt.Errorf("stop container %s: %w", r.Name, proxy.Explain(err))
		}
	}
	return waitGone(ctx, c, r)
}

// waitGone waits until the sandbox of a container has ended.
func waitGone(ctx context.Context, c *proxy.Client, r record) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	select {
	case <-c.Gone():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s: its sandbox does not end; `kata rm -f %s` ends it by force", r.Name, r.Name)
	}
}

func (a *app) killCommand() *cobra.Command {
	var sig string
	cmd := &cobra.Command{
		Use:   "kill [flags] CONTAINER...",
		Short: "Send a signal to containers",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			n, err := runflags.ParseSignal(sig)
			if err != nil {
				return err
			}
			return a.each(refs, func(r record) error {
				c, err := a.dial(cmd.Context(), r)
				if err != nil {
					return err
				}
				defer c.Close()
				if _, err := c.Signal(cmd.Context(), &proxyv1.SignalRequest{Container: r.ID, Signal: uint32(n)}); err != nil {
					return fmt.Errorf("kill container %s: %w", r.Name, proxy.Explain(err))
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVarP(&sig, "signal", "s", "KILL", "signal, by name or number")
	return cmd
}

func (a *app) rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm [flags] CONTAINER...",
		Short: "Remove stopped containers",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, refs []string) error {
			return a.each(refs, func(r record) error { return a.rm(cmd.Context(), r, force) })
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "end a running container first")
	return cmd
}

func (a *app) rm(ctx context.Context, r record, force bool) error {
	if a.containers.condition(r).running() {
		if !force {
			return fmt.Errorf("container %s is running; stop it first or use `kata rm -f`", r.Name)
		}
		if err := a.shutdown(ctx, r); err != nil {
			return err
		}
	}
	// What a crash left behind goes with the container.
	if err := a.collect(ctx, r.ID); err != nil {
		return fmt.Errorf("remove container %s: %w", r.Name, err)
	}
	if r.Remove { // its kata-proxy removes the directory; do it if that was too late
		if _, err := a.containers.find(r.ID); err != nil {
			return nil //nolint:nilerr // gone is what was asked for
		}
	}
	return a.containers.remove(r.ID)
}

// shutdown ends a sandbox now, without asking the container.
func (a *app) shutdown(ctx context.Context, r record) error {
	c, err := a.dial(ctx, r)
	if errors.Is(err, sandbox.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := c.End(ctx); err != nil {
		return fmt.Errorf("end container %s: %w", r.Name, err)
	}
	return nil
}
