package subject

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/seed-efd44b36/kata/internal/owner"
	"github.com/seed-efd44b36/kata/test/harness"
)

// cli is `kata`.
type cli struct {
	rig *Rig
	env *harness.Env
}

func (c *cli) once(ctx context.Context) (Start, error) {
	return runOnce(c.env.Command(ctx, "kata", "run", "--rm", "--network", "none", "oci:"+c.rig.image, "echo", "started"))
}

func (c *cli) stay(ctx context.Context) (Container, error) {
	made := &cliContainer{c, c.rig.next()}
	args := []string{"run", "-d", "--name", made.name, "--network", "none", "-v", c.rig.volume() + ":" + Volume, "oci:" + c.rig.image, "sleep", "100000"}
	if err := finish(c.env.Command(ctx, "kata", args...)); err != nil {
		_ = made.Remove(ctx) // as far as there is something
		return nil, err
	}
	return made, nil
}

// agentTime looks into the time line of a start.
func (c *cli) agentTime(ctx context.Context) (float64, error) {
	r, err := c.env.Run(ctx, nil, "kata", "run", "--rm", "--trace", "--network", "none", "oci:"+c.rig.image, "true")
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("kata run --trace: exit code %d: %s", r.Code, r.Stderr)
	}
	if err != nil {
		return 0, err
	}
	return agentAnswer(r.Stderr)
}

// agentAnswer returns the seconds from the beginning of the phase VMM to the end
// of the one that the agent answers in.
func agentAnswer(trace string) (float64, error) {
	vmm, agent := -1.0, -1.0
	for line := range strings.Lines(trace) {
		words := strings.Fields(line)
		if len(words) < 3 {
			continue
		}
		start, serr := strconv.ParseFloat(words[0], 64)
		dur, derr := strconv.ParseFloat(words[1], 64)
		if serr != nil || derr != nil {
			continue
		}
		switch name := strings.Join(words[2:], " "); {
		case words[2] == "VMM": // the bar follows
			vmm = start
		case strings.Contains(name, "agent's first answer"):
			agent = start + dur
		}
	}
	if vmm < 0 || agent < vmm {
		return 0, fmt.Errorf("the time line has no phases VMM and agent's first answer: %s", trace)
	}
	return (agent - vmm) / 1000, nil
}

// cliContainer is one of `kata run -d`.
type cliContainer struct {
	*cli
	name string
}

// Exec implements [Container].
func (c *cliContainer) Exec(ctx context.Context, out io.Writer, command ...string) error {
	return copyOutput(c.env.Command(ctx, "kata", append([]string{"exec", c.name}, command...)...), out)
}

// Remove implements [Container].
func (c *cliContainer) Remove(ctx context.Context) error {
	return finish(c.env.Command(context.WithoutCancel(ctx), "kata", "rm", "-f", c.name))
}

// AgentRSS finds in the logs what the agent has told of itself. All sandboxes of
// a rig have the same agent, and so does any log.
func (c *cliContainer) AgentRSS(context.Context) (float64, error) {
	logs, err := filepath.Glob(filepath.Join(c.env.State, "*", owner.LogFile))
	if err != nil {
		return 0, err
	}
	for _, path := range logs {
		log, err := os.ReadFile(path)
		if err != nil {
			return 0, fmt.Errorf("memory of the agent: %w", err)
		}
		for line := range bytes.Lines(log) {
			var entry struct {
				RSS float64 `json:"agent_rss_bytes"`
			}
			if json.Unmarshal(line, &entry) == nil && entry.RSS > 0 {
				return entry.RSS / (1 << 20), nil
			}
		}
	}
	return 0, errors.New("memory of the agent: in no log")
}
