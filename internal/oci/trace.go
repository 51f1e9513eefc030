package oci

import (
	"github.com/seed-efd44b36/kata/internal/timeline/chart"
	"github.com/spf13/cobra"
)

func (a *app) traceCommand() *cobra.Command {
	var asJSON, asSVG bool
	cmd := &cobra.Command{
		Use:   "trace [flags] SANDBOX|CONTAINER",
		Short: "Print how long the steps of its start took",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, c, err := a.dial(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			defer c.Close()
			h, err := c.History(cmd.Context())
			if err != nil {
				return err
			}
			ch := chart.Chart{Sandbox: t.sandbox.ID, History: h}
			if t.container != nil {
				ch = ch.Of(t.container.ID)
			}
			return ch.Write(a.out, chart.FormatOf(asJSON, asSVG))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&asSVG, "svg", false, "print a picture (SVG)")
	cmd.MarkFlagsMutuallyExclusive("json", "svg")
	return cmd
}
