package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/oci/limits"
	"github.com/seed-efd44b36/kata/internal/oci/record"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/internal/usage"
	"github.com/spf13/cobra"
)

// errNotPaused is an error that engines know, with runc's text.
var errNotPaused = errors.New("container not paused")

// ask does something by the sandbox of a container.
func (a *Verbs) ask(ctx context.Context, r record.Record, do func(c *proxy.Client) error) error {
	c, err := a.dial(ctx, r)
	if err != nil {
		return err
	}
	defer c.Close()
	return proxy.Explain(do(c))
}

func (a *Verbs) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pause CONTAINER",
		Short: "Stop all processes of a container, to go on later",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[0], func(_ *record.Entry, r record.Record, st report.Status) error {
				if st != report.Running {
					return errNotRunning
				}
				return a.ask(cmd.Context(), r, func(c *proxy.Client) error {
					_, err := c.Pause(cmd.Context(), &proxyv1.PauseRequest{Container: r.ID})
					return err
				})
			})
		},
	}
}

func (a *Verbs) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resume CONTAINER",
		Short: "Let the processes of a paused container go on",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[0], func(_ *record.Entry, r record.Record, st report.Status) error {
				if st != report.Paused {
					return errNotPaused
				}
				return a.ask(cmd.Context(), r, func(c *proxy.Client) error {
					_, err := c.Resume(cmd.Context(), &proxyv1.ResumeRequest{Container: r.ID})
					return err
				})
			})
		},
	}
}

func (a *Verbs) psCommand() *cobra.Command {
	format := "table"
	cmd := &cobra.Command{
		Use:   "ps [flags] CONTAINER [PS-OPTION...]",
		Short: "List the processes of a container, with their numbers in the guest; as JSON, the pid of its kata-shim",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, st, err := a.findContainer(args[0])
			if err != nil {
				return err
			}
			running := st != report.Stopped && st != report.Creating
			switch format {
			case "json":
				pids := []int{}
				if running {
					pids = append(pids, r.Shim.PID)
				}
				return json.NewEncoder(a.Out).Encode(pids)
			case "table":
			default:
				return errors.New("invalid format option")
			}
			if !running {
				return usage.WriteProcesses(a.Out, nil)
			}
			return a.ask(cmd.Context(), r, func(c *proxy.Client) error {
				resp, err := c.Processes(cmd.Context(), &proxyv1.ProcessesRequest{Container: r.ID})
				if err != nil {
					return err
				}
				return usage.WriteProcesses(a.Out, resp.GetProcesses())
			})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", format, "table or json")
	cmd.Flags().SetInterspersed(false) // what follows are options of ps, which has no say here
	return cmd
}

func (a *Verbs) eventsCommand() *cobra.Command {
	var once bool
	interval := 5 * time.Second
	cmd := &cobra.Command{
		Use:   "events [flags] CONTAINER",
		Short: "Print what a container uses, again and again",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if interval <= 0 {
				return errors.New("duration interval must be greater than 0")
			}
			r, st, err := a.findContainer(args[0])
			if err != nil {
				return err
			}
			if st == report.Stopped {
				return fmt.Errorf("container with id %s is not running", r.ID)
			}
			return a.ask(cmd.Context(), r, func(c *proxy.Client) error { return a.events(cmd.Context(), c, r, interval, once) })
		},
	}
	cmd.Flags().BoolVar(&once, "stats", false, "print it once")
	cmd.Flags().DurationVar(&interval, "interval", interval, "how often")
	return cmd
}

// events prints figures until the container's end.
func (a *Verbs) events(ctx context.Context, c *proxy.Client, r record.Record, interval time.Duration, once bool) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		resp, err := c.Stats(ctx, &proxyv1.StatsRequest{Container: r.ID})
		if err == nil {
			err = usage.WriteStats(a.Out, r.ID, resp.GetStats())
		}
		if err != nil && !once {
			if st, serr := a.statusOf(r); serr == nil && st == report.Stopped {
				return nil // that was the end
			}
		}
		if err != nil || once {
			return err
		}
		select {
		case <-tick.C:
		case <-c.Gone():
			return nil
		case <-ctx.Done():
			return nil // as runc, which is ended by a signal
		}
		if st, err := a.statusOf(r); err != nil || st == report.Stopped {
			return err
		}
	}
}

func (a *Verbs) updateCommand() *cobra.Command {
	var l limits.Flags
	cmd := &cobra.Command{
		Use:   "update [flags] CONTAINER",
		Short: "Change the limits of a container",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(cmd.Context(), args[0], func(_ *record.Entry, r record.Record, st report.Status) error {
				if st == report.Stopped || st == report.Creating {
					return errNotRunning
				}
				res, err := l.Resources(cmd.Flags(), os.Stdin)
				if err != nil {
					return err
				}
				b, err := json.Marshal(res)
				if err != nil {
					return fmt.Errorf("encode resources: %w", err)
				}
				return a.ask(cmd.Context(), r, func(c *proxy.Client) error {
					_, err := c.Update(cmd.Context(), &proxyv1.UpdateRequest{Container: r.ID, Resources: b})
					return err
				})
			})
		},
	}
	l.Add(cmd.Flags())
	return cmd
}
