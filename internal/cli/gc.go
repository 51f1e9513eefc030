package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/owner"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/spf13/cobra"
)

func (a *app) gcCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "gc",
		Short: "Remove what crashed sandboxes, unfinished pulls and makers of templates have left",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log := slog.New(slog.NewTextHandler(a.errOut, &slog.HandlerOptions{Level: slog.LevelWarn}))
			rep, err := cleanup.GC(cmd.Context(), a.conf.Runtime.StateDir, log, proxy.Releasers(a.conf))
			rep.Alive = slices.DeleteFunc(rep.Alive, owner.IsClone)
			fmt.Fprintf(a.out, "sandboxes: %d removed, %d running, %d kept\n", len(rep.Removed), len(rep.Alive), len(rep.Kept))
			if n, derr := owner.Trim(cmd.Context(), a.conf); n > 0 || derr != nil {
				fmt.Fprintf(a.out, "warm clones: %d dismissed\n", n)
				err = errors.Join(err, derr)
			}
			err = errors.Join(err, a.containers.sweep(), owner.Store(a.conf).Sweep())
			layers, ierr := a.images.GC(cmd.Context(), a.containers.dirs)
			fmt.Fprintf(a.out, "image layers: %d removed\n", layers)
			return errors.Join(err, ierr)
		},
	}
}

// endTimeout bounds the end of a sandbox, in which the last output of its
// container is still written to the log.
const endTimeout = 30 * time.Second

// collect returns when the sandbox has gone, and with it what it left on the
// host, should its kata-proxy have died.
func (a *app) collect(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	alive, err := proxy.AwaitEnd(ctx, a.conf, id)
	if alive {
		return fmt.Errorf("the sandbox of container %s does not end: %w; `kata rm -f %s` ends it by force", short(id), err, short(id))
	}
	return err
}
