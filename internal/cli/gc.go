package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/spf13/cobra"
)

func (a *app) gcCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "gc",
		Short: "Remove what crashed sandboxes and unfinished pulls have left",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot("kata gc"); err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(a.errOut, &slog.HandlerOptions{Level: slog.LevelWarn}))
			rep, err := cleanup.GC(cmd.Context(), a.conf.Runtime.StateDir, log, proxy.Releasers(a.conf))
			fmt.Fprintf(a.out, "sandboxes: %d removed, %d running, %d kept\n", len(rep.Removed), len(rep.Alive), len(rep.Kept))
			dirs, derr := a.containers.dirs()
			if derr != nil {
				return errors.Join(err, derr)
			}
			layers, ierr := a.images.GC(cmd.Context(), dirs)
			fmt.Fprintf(a.out, "image layers: %d removed\n", layers)
			return errors.Join(err, ierr)
		},
	}
}

// collect removes what a sandbox whose kata-proxy has died left on the host.
func (a *app) collect(ctx context.Context, id string) error {
	_, err := cleanup.Collect(ctx, filepath.Join(a.conf.Runtime.StateDir, id), slog.New(slog.DiscardHandler), proxy.Releasers(a.conf))
	return err
}
