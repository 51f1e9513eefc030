package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/internal/timeline/chart"
	"github.com/spf13/cobra"
)

func (a *app) traceCommand() *cobra.Command {
	var asJSON, asSVG bool
	cmd := &cobra.Command{
		Use:   "trace [flags] SANDBOX|CONTAINER",
		Short: "Print how long the steps of its start took",
		Long: `Print how long the steps of its start took, and those of further containers and
execs in it. It has to run; whichever program started it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ch, err := a.chart(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return ch.Write(a.out, chart.FormatOf(asJSON, asSVG))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&asSVG, "svg", false, "print a picture (SVG)")
	cmd.MarkFlagsMutuallyExclusive("json", "svg")
	return cmd
}

// chart asks the owner of what is named: a container of ours, or any sandbox.
func (a *app) chart(ctx context.Context, name string) (chart.Chart, error) {
	r, err := a.containers.find(name)
	if err == nil {
		c, err := proxy.Dial(ctx, a.conf.Runtime.StateDir, r.ID)
		if errors.Is(err, sandbox.ErrNotFound) {
			return chart.Chart{}, fmt.Errorf("container %s is %s, and its time line went with its sandbox; `kata run --trace` prints it", r.Name, a.containers.condition(r))
		}
		return chartOf(ctx, c, r.ID, err)
	}
	if !errors.Is(err, errNoContainer) {
		return chart.Chart{}, err
	}
	st, ct, err := report.Find(a.conf.Runtime.StateDir, name)
	if err != nil {
		return chart.Chart{}, err
	}
	c, err := proxy.Dial(ctx, a.conf.Runtime.StateDir, st.ID)
	ch, err := chartOf(ctx, c, st.ID, err)
	if ct != nil {
		ch = ch.Of(ct.ID)
	}
	return ch, err
}

// chartOf asks a client that has been dialled, if it has.
func chartOf(ctx context.Context, c *proxy.Client, id string, err error) (chart.Chart, error) {
	if err != nil {
		return chart.Chart{}, err
	}
	defer c.Close()
	h, err := c.History(ctx)
	return chart.Chart{Sandbox: id, History: h}, err
}
