package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"text/tabwriter"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/spf13/cobra"
)

// hiddenPID stands for a process of the host that a container does not have:
// its processes are the guest's.
const hiddenPID = -1

// listed is a container as runc's `list --format json` has it.
type listed struct {
	OCIVersion string    `json:"ociVersion"`
	ID         string    `json:"id"`
	PID        int       `json:"pid"`
	Status     string    `json:"status"`
	Bundle     string    `json:"bundle"`
	Created    time.Time `json:"created"`
	Owner      string    `json:"owner"`
	// Exit is ours: how it ended, and why if not by itself.
	Exit *report.Exit `json:"exit,omitempty"`
}

func (a *app) listCommand() *cobra.Command {
	var (
		quiet  bool
		format string
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List containers, whichever program started them",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if format != "table" && format != "json" {
				return fmt.Errorf("format %q: must be table or json", format)
			}
			states, err := report.List(a.conf.Runtime.StateDir)
			if errors.Is(err, fs.ErrPermission) {
				err = fmt.Errorf("%w; run it as root", err)
			}
			if len(states) == 0 && err != nil {
				return err
			}
			// What can be read is listed all the same.
			return errors.Join(printList(a.out, containersOf(states), quiet, format), err)
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	cmd.Flags().StringVarP(&format, "format", "f", "table", "table or json")
	return cmd
}

// containersOf flattens the states of sandboxes. What a sandbox whose owner has
// died says last is not true any more: its containers have stopped.
func containersOf(states []report.Sandbox) []listed {
	out := []listed{}
	for _, st := range states {
		for _, c := range st.Containers {
			l := listed{
				OCIVersion: specs.Version, ID: c.ID, PID: hiddenPID, Status: string(c.Status), Bundle: c.Bundle,
				Created: c.Created.UTC(), Owner: fmt.Sprintf("#%d", c.UID), Exit: c.Exit,
			}
			if !st.Alive {
				l.Status = string(report.Stopped)
			}
			out = append(out, l)
		}
	}
	return out
}

func printList(out io.Writer, list []listed, quiet bool, format string) error {
	switch {
	case quiet:
		for _, l := range list {
			fmt.Fprintln(out, l.ID)
		}
		return nil
	case format == "json":
		return json.NewEncoder(out).Encode(list)
	}
	w := tabwriter.NewWriter(out, 12, 1, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER")
	for _, l := range list {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", l.ID, l.PID, l.Status, l.Bundle, l.Created.Format(time.RFC3339Nano), l.Owner)
	}
	return w.Flush()
}
