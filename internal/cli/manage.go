package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/runflags"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
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
	c, err := proxy.Dial(ctx, a.conf.Runtime.StateDir, r.ID)
	if errors.Is(err, sandbox.ErrNotFound) { // it has ended meanwhile
		return nil, fmt.Errorf("container %s is not running: it is %s", r.Name, a.containers.condition(r))
	}
	return c, err
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
	c, err := a.dial(ctx, r)
	if err != nil {
		if a.containers.condition(r).status != report.Stopped {
			return err
		}
		return a.collect(ctx, r.ID) // as docker stop: nothing to do is no error
	}
	defer c.Close()
	ended := false
	if grace > 0 {
		if err := a.signal(ctx, c, r, r.StopSignal); err != nil {
			return err
		}
		waitCtx, cancel := context.WithTimeout(ctx, grace)
		_, err := c.Wait(waitCtx, &proxyv1.WaitRequest{Container: r.ID})
		ended = err == nil
		cancel()
	}
	if !ended {
		if err := a.signal(ctx, c, r, int(unix.SIGKILL)); err != nil {
			return err
		}
	}
	return a.collect(ctx, r.ID)
}

// signal sends a signal to a container that may have just ended.
func (a *app) signal(ctx context.Context, c *proxy.Client, r record, sig int) error {
	_, err := c.Signal(ctx, &proxyv1.SignalRequest{Container: r.ID, Signal: uint32(sig)})
	if err == nil || !a.containers.condition(r).running() {
		return nil
	}
	return fmt.Errorf("send a signal to container %s: %w", r.Name, proxy.Explain(err))
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
				return a.signal(cmd.Context(), c, r, n)
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
			if force {
				refs = slices.DeleteFunc(refs, a.tellMissing)
			}
			return a.each(refs, func(r record) error { return a.rm(cmd.Context(), r, force) })
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "end a running container first; one that is not there is no failure")
	return cmd
}

// tellMissing tells the person, too, when there is no such container.
func (a *app) tellMissing(ref string) bool {
	_, err := a.containers.find(ref)
	if !errors.Is(err, errNoContainer) {
		return false
	}
	fmt.Fprintln(a.errOut, printable.Text("kata: "+err.Error(), 4000))
	return true
}

func (a *app) rm(ctx context.Context, r record, force bool) error {
	if force {
		if err := a.shutdown(ctx, r); err != nil {
			return err
		}
	} else if c := a.containers.condition(r); c.running() || c.status == report.Creating {
		return fmt.Errorf("container %s is %s; stop it first or use `kata rm -f`", r.Name, c)
	}
	// It may be about to end still; and what a crash left goes with it.
	if err := a.collect(ctx, r.ID); err != nil {
		return fmt.Errorf("remove container %s: %w", r.Name, err)
	}
	return a.containers.remove(r.ID) // no error when --rm was faster
}

// shutdown ends a sandbox now, if it is there, without asking the container.
func (a *app) shutdown(ctx context.Context, r record) error {
	c, err := proxy.Dial(ctx, a.conf.Runtime.StateDir, r.ID)
	if errors.Is(err, sandbox.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	if err := c.End(ctx); err != nil {
		return fmt.Errorf("end container %s: %w", r.Name, err)
	}
	return nil
}
