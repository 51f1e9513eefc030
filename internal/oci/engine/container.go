package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/hook"
	"github.com/seed-efd44b36/kata/internal/oci/record"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/spf13/cobra"
)

// errNotRunning is an error of verbs that engines know, with runc's text.
var errNotRunning = errors.New("container not running")

// containers are those that the engine has made below its root.
func (a *Verbs) containers() record.Root { return record.Root(a.Root) }

// statusOf tells what has become of a container. Its kata-shim is what the engine
// waits for: without it the container has stopped.
func (a *Verbs) statusOf(r record.Record) (report.Status, error) {
	switch {
	case !r.Shim.Alive():
		return report.Stopped, nil
	case !r.Ready:
		return report.Creating, nil
	}
	st, err := report.Read(a.Conf.Runtime.StateDir, r.Sandbox)
	if errors.Is(err, fs.ErrNotExist) {
		return report.Stopped, nil
	}
	if err != nil {
		return "", err
	}
	for _, c := range st.Containers {
		if c.ID == r.ID && st.Alive {
			return c.Status, nil
		}
	}
	return report.Stopped, nil
}

// find reads the record of a container, with its status.
func (a *Verbs) findContainer(id string) (record.Record, report.Status, error) {
	r, err := a.containers().Read(id)
	if err != nil {
		return r, "", err
	}
	st, err := a.statusOf(r)
	return r, st, err
}

// change does something to a container that no other verb changes meanwhile.
func (a *Verbs) change(ctx context.Context, id string, do func(e *record.Entry, r record.Record, st report.Status) error) error {
	e, err := a.containers().Lock(ctx, id)
	if err != nil {
		return err
	}
	defer e.Unlock()
	r, st, err := a.findContainer(id)
	if err != nil {
		return err
	}
	return do(e, r, st)
}

// dial connects to the sandbox of a container.
func (a *Verbs) dial(ctx context.Context, r record.Record) (*proxy.Client, error) {
	return proxy.Dial(ctx, a.Conf.Runtime.StateDir, r.Sandbox)
}

// explainCommand says what engines look for, where the command itself is at fault.
func explainCommand(err error) error {
	switch {
	case errors.Is(err, sandbox.ErrCommandNotFound), errors.Is(err, sandbox.ErrCommandDenied):
		// As a text: engines want no other exit code of this.
		return errors.New("unable to start container process: " + err.Error())
	default:
		return err
	}
}

// runHooks runs hooks in the namespaces of the caller.
func runHooks(ctx context.Context, hooks []specs.Hook, r record.Record, st specs.ContainerState) error {
	return hook.Run(ctx, nil, hooks, specs.State{
		Version: specs.Version, ID: r.ID, Status: st, Pid: stateOf(r, report.Status(st)).PID, Bundle: r.Bundle, Annotations: r.Annotations,
	})
}

// state is what the verb state prints: that of the OCI runtime spec, and what runc
// has besides, in its order.
type state struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	PID         int               `json:"pid"` // 0 of one that has stopped
	Status      report.Status     `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

func stateOf(r record.Record, st report.Status) state {
	s := state{
		Version: specs.Version, ID: r.ID, PID: r.Shim.PID, Status: st, Bundle: r.Bundle, Rootfs: r.Rootfs, Created: r.Created, Annotations: r.Annotations,
	}
	if st == report.Stopped {
		s.PID = 0
	}
	return s
}

func (a *Verbs) stateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "state CONTAINER",
		Short: "Print the state of a container",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, st, err := a.findContainer(args[0])
			if err != nil {
				return err
			}
			b, err := json.MarshalIndent(stateOf(r, st), "", "  ")
			if err != nil {
				return fmt.Errorf("encode state: %w", err)
			}
			_, err = a.Out.Write(b)
			return err
		},
	}
}
