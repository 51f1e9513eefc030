package subject

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Verbs are those of an OCI command line that are timed, in the order of a
// container's life.
func Verbs() []string {
	return []string{"create", "start", "state", "list", "exec", "ps", "events", "update", "pause", "resume", "kill", "delete", "run", "run-detach"}
}

// endTimeout is for a process to end that was killed.
const endTimeout = time.Minute

// VerbTimes leads a container through its life by the verbs of an OCI command line,
// and another two by `run`, and returns the seconds that each verb took. Verbs that
// the runtime does not have are not among them.
func (s *Subject) VerbTimes(ctx context.Context) (map[string]float64, error) {
	return s.front.(*oci).verbTimes(ctx)
}

// act is one verb with its arguments. What it starts stays when it leaves one
// running.
type act struct {
	verb   string
	args   []string
	leaves bool
}

func (o *oci) verbTimes(ctx context.Context) (_ map[string]float64, err error) {
	id := o.rig.next()
	dir, err := o.make(id, []string{"sleep", "100000"})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil { // a life that was cut short; a whole one has left nothing
			err = errors.Join(err, (&ociContainer{o, id}).Remove(ctx))
		}
	}()
	times := map[string]float64{}
	do := func(acts ...act) error {
		for _, a := range acts {
			if slices.Contains(o.tool.without, a.verb) {
				continue
			}
			start := time.Now()
			run := o.finish
			if a.leaves {
				run = func(ctx context.Context, args ...string) error { return o.leave(ctx, dir, args...) }
			}
			if err := run(ctx, a.args...); err != nil {
				return err
			}
			times[a.verb] = time.Since(start).Seconds()
		}
		return nil
	}
	if err := do(
		act{"create", []string{"create", "--bundle", dir, id}, true},
		act{"start", []string{"start", id}, false},
		act{"state", []string{"state", id}, false},
		act{"list", []string{"list"}, false},
		act{"exec", []string{"exec", id, Hello}, false},
		act{"ps", []string{"ps", id}, false},
		act{"events", []string{"events", "--stats", id}, false},
		act{"update", []string{"update", "--cpu-share", "512", id}, false},
		act{"pause", []string{"pause", id}, false},
		act{"resume", []string{"resume", id}, false},
		act{"kill", []string{"kill", id, "KILL"}, false},
	); err != nil {
		return nil, err
	}
	if err := o.ended(ctx, id); err != nil {
		return nil, err
	}
	if err := do(
		act{"delete", []string{"delete", id}, false},
		act{"run-detach", []string{"run", "--detach", "--bundle", dir, id}, true},
	); err != nil {
		return nil, err
	}
	if err := (&ociContainer{o, id}).Remove(ctx); err != nil {
		return nil, err
	}
	one, err := o.once(ctx)
	times["run"] = one.Whole
	return times, err
}

// finish runs a command to its end, which has to be a success.
func (o *oci) finish(ctx context.Context, args ...string) error {
	return finish(o.command(ctx, args...))
}

// ended waits until a container that was killed has stopped.
func (o *oci) ended(ctx context.Context, id string) error {
	deadline := time.Now().Add(endTimeout)
	for {
		cmd := o.command(ctx, "state", id)
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("state %s: %w: %s", id, err, errOut.Bytes())
		}
		var st specs.State
		if err := json.Unmarshal(out, &st); err != nil {
			return fmt.Errorf("what state %s writes: %w", id, err)
		}
		if st.Status == specs.StateStopped {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is still %s %v after it was killed", id, st.Status, endTimeout)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
