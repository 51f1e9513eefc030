package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/oci/record"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/internal/usage"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
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
			return a.change(args[0], func(_ *record.Entry, r record.Record, st report.Status) error {
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
			return a.change(args[0], func(_ *record.Entry, r record.Record, st report.Status) error {
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
	cmd.Flags().SetInterspersed(true)
	cmd.FParseErrWhitelist = cobra.FParseErrWhitelist{UnknownFlags: true} // options of ps, which has no say here
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

// limits are the flags of update.
type limits struct {
	file, cpus, mems                         string
	shares, period                           uint64
	quota, memory, reservation, swap, pids   int64
	weight                                   uint16
	rtPeriod                                 uint64
	rtRuntime, kernelMemory, kernelTCPMemory int64
	l3, memBandwidth                         string
}

func (a *Verbs) updateCommand() *cobra.Command {
	var l limits
	cmd := &cobra.Command{
		Use:   "update [flags] CONTAINER",
		Short: "Change the limits of a container",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.change(args[0], func(_ *record.Entry, r record.Record, st report.Status) error {
				if st == report.Stopped || st == report.Creating {
					return errNotRunning
				}
				res, err := l.resources(cmd.Flags(), os.Stdin)
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
	l.add(cmd)
	return cmd
}

func (l *limits) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&l.file, "resources", "r", "", "a `file` with linux.resources, or - for standard input; other flags are ignored then")
	f.Uint64Var(&l.shares, "cpu-share", 0, "CPU shares")
	f.Uint64Var(&l.period, "cpu-period", 0, "period of the CPU quota, in microseconds")
	f.Int64Var(&l.quota, "cpu-quota", 0, "CPU time in a period, in microseconds")
	f.StringVar(&l.cpus, "cpuset-cpus", "", "accepted: a running sandbox keeps its CPUs")
	f.StringVar(&l.mems, "cpuset-mems", "", "accepted, likewise")
	f.Int64Var(&l.memory, "memory", 0, "memory, in bytes")
	f.Int64Var(&l.reservation, "memory-reservation", 0, "memory that is to be left to it, in bytes")
	f.Int64Var(&l.swap, "memory-swap", 0, "memory and swap together, in bytes; -1 for any")
	f.Int64Var(&l.pids, "pids-limit", 0, "number of processes")
	f.Uint16Var(&l.weight, "blkio-weight", 0, "weight of its input and output")
	f.Int64Var(&l.kernelMemory, "kernel-memory", 0, "accepted: kernels do not have this limit any more")
	f.Int64Var(&l.kernelTCPMemory, "kernel-memory-tcp", 0, "accepted, likewise")
	f.Uint64Var(&l.rtPeriod, "cpu-rt-period", 0, "refused: the guest's cgroups have no real-time scheduling")
	f.Int64Var(&l.rtRuntime, "cpu-rt-runtime", 0, "refused, likewise")
	f.StringVar(&l.l3, "l3-cache-schema", "", "refused: Intel RDT is not available in a virtual machine")
	f.StringVar(&l.memBandwidth, "mem-bw-schema", "", "refused, likewise")
}

// resources are the limits that the flags, or the file that they name, ask for.
func (l *limits) resources(f *pflag.FlagSet, stdin io.Reader) (*specs.LinuxResources, error) {
	if l.file != "" {
		return readResources(l.file, stdin)
	}
	for _, name := range []string{"cpu-rt-period", "cpu-rt-runtime", "l3-cache-schema", "mem-bw-schema"} {
		if f.Changed(name) {
			return nil, fmt.Errorf("--%s: %s", name, f.Lookup(name).Usage)
		}
	}
	r := &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: l.cpus, Mems: l.mems}, Memory: &specs.LinuxMemory{}}
	for name, set := range map[string]func(){
		"cpu-share":          func() { r.CPU.Shares = &l.shares },
		"cpu-period":         func() { r.CPU.Period = &l.period },
		"cpu-quota":          func() { r.CPU.Quota = &l.quota },
		"memory":             func() { r.Memory.Limit = &l.memory },
		"memory-reservation": func() { r.Memory.Reservation = &l.reservation },
		"memory-swap":        func() { r.Memory.Swap = &l.swap },
		"pids-limit":         func() { r.Pids = &specs.LinuxPids{Limit: &l.pids} },
		"blkio-weight":       func() { r.BlockIO = &specs.LinuxBlockIO{Weight: &l.weight} },
	} {
		if f.Changed(name) {
			set()
		}
	}
	return r, nil
}

func readResources(path string, stdin io.Reader) (*specs.LinuxResources, error) {
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("resources: %w", err)
		}
		defer f.Close()
		in = f
	}
	var r specs.LinuxResources
	if err := json.NewDecoder(in).Decode(&r); err != nil {
		return nil, fmt.Errorf("resources %s: %w", path, err)
	}
	return &r, nil
}
