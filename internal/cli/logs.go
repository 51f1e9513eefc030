package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/seed-efd44b36/kata/internal/command"
	"github.com/seed-efd44b36/kata/internal/logfile"
	"github.com/spf13/cobra"
)

func (a *app) logsCommand() *cobra.Command {
	var follow bool
	tail := "all"
	cmd := &cobra.Command{
		Use:   "logs [flags] CONTAINER",
		Short: "Print the output of a detached container",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.containers.find(args[0])
			if err != nil {
				return err
			}
			if !r.Detached {
				return fmt.Errorf("container %s runs in the foreground (no -d): its output goes to its caller and is not kept", r.Name)
			}
			last, err := command.ParseTail(tail)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			path := filepath.Join(a.containers.path(r.ID), logFile)
			ended := func() bool { return !a.containers.condition(r).running() }
			err = logfile.Copy(ctx, path, a.out, a.errOut, logfile.Options{Follow: follow, Ended: ended, Tail: last})
			if errors.Is(err, fs.ErrNotExist) {
				return nil // nothing was printed yet
			}
			if code, ok := command.Interrupted(ctx); ok && follow {
				return command.ExitError(code) // which is how following ends
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&tail, "tail", "n", tail, "only so many of the last `lines`, or all")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the container ends")
	return cmd
}
