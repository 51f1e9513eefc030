package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/user"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/oci/record"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/spf13/cobra"
)

// hiddenPID stands for a process of the host that a container does not have:
// its processes are the guest's.
const hiddenPID = -1

// listed is a container as runc's `list --format json` has it.
type listed struct {
	OCIVersion  string            `json:"ociVersion"`
	ID          string            `json:"id"`
	PID         int               `json:"pid"`
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs,omitempty"`
	Created     time.Time         `json:"created"`
	Owner       string            `json:"owner"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Exit is ours: how it ended, and why if not by itself.
	Exit *report.Exit `json:"exit,omitempty"`
}

func (a *Verbs) listCommand() *cobra.Command {
	var (
		quiet  bool
		format string
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List containers: those below --root, and without that flag all others, too",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if format != "table" && format != "json" {
				return fmt.Errorf("format %q: must be table or json", format)
			}
			list, err := a.list()
			if errors.Is(err, fs.ErrPermission) {
				err = fmt.Errorf("%w; run it as root", err)
			}
			if len(list) == 0 && err != nil {
				return err
			}
			// What can be read is listed all the same.
			return errors.Join(printList(a.Out, list, quiet, format), err)
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	cmd.Flags().StringVarP(&format, "format", "f", "table", "table or json")
	return cmd
}

// list has the containers below the root, and unless one was named those of other
// engines and roots.
func (a *Verbs) list() ([]listed, error) {
	list := []listed{}
	records, err := a.containers().List()
	for _, r := range records {
		st, serr := a.statusOf(r)
		if serr != nil {
			err = errors.Join(err, serr)
			continue
		}
		s := stateOf(r, st)
		list = append(list, listed{
			OCIVersion: s.Version, ID: s.ID, PID: s.PID, Status: string(st), Bundle: s.Bundle, Rootfs: s.Rootfs,
			Created: s.Created, Owner: ownerName(r.UID), Annotations: r.Annotations,
		})
	}
	if a.RootGiven {
		return list, err
	}
	states, serr := report.List(a.Conf.Runtime.StateDir)
	for _, l := range containersOf(states) {
		if !slices.ContainsFunc(records, func(r record.Record) bool { return r.ID == l.ID && r.Bundle == l.Bundle }) {
			list = append(list, l)
		}
	}
	return list, errors.Join(err, serr)
}

// ownerName is the name of a user, or its number.
func ownerName(uid uint32) string {
	text := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(text); err == nil {
		return u.Username
	}
	return "#" + text
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
