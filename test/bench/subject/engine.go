package subject

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/seed-efd44b36/kata/test/containerd"
	"github.com/seed-efd44b36/kata/test/cri"
)

// engine is a containerd with all the runtimes that are compared.
type engine struct {
	*containerd.Daemon
	*cri.Client

	rig     *Rig
	network *containerd.Network
	image   string
	logs    string // directory of the pods' logs
}

const (
	// readyTimeout is for containerd, startTimeout for many containers at once,
	// removeTimeout for one; only a hang reaches them.
	readyTimeout  = time.Minute
	startTimeout  = 10 * time.Minute
	removeTimeout = 2 * time.Minute
)

// newEngine starts a containerd; close ends it.
func newEngine(ctx context.Context, r *Rig, number string, handlers map[string]tool) (_ *engine, err error) {
	r.Step("containerd")
	e := &engine{rig: r, logs: filepath.Join(r.dir, "logs")}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	if e.network, err = containerd.NewNetwork(r.name()); err != nil {
		return nil, err
	}
	release, err := releaseOf(ctx, number)
	if err != nil {
		return nil, err
	}
	if e.Daemon, err = containerd.New(r.env, release, e.network, "bench"); err != nil {
		return nil, err
	}
	e.CgroupParent = "/" + r.name() + "/containerd"
	if err = e.configure(handlers); err != nil {
		return nil, err
	}
	if err = e.Start(context.WithoutCancel(ctx)); err != nil {
		return nil, err
	}
	if _, err = e.Import(ctx, "pause"); err != nil {
		return nil, err
	}
	if e.image, err = e.ImportLayout(ctx, r.image, "bench"); err != nil {
		return nil, err
	}
	if e.Client, err = cri.Dial(e.Address, e.network.Dial); err != nil {
		return nil, err
	}
	readyCtx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err = e.Ready(readyCtx); err != nil {
		return nil, err
	}
	r.About = append(r.About, version(ctx, filepath.Join(release.Dir, "containerd")))
	return e, nil
}

// releaseOf is the containerd of a version, or Debian's.
func releaseOf(ctx context.Context, number string) (containerd.Release, error) {
	if number == "" {
		return containerd.Debian(ctx)
	}
	return containerd.Module(ctx, number)
}

// configure adds a handler for each runtime to containerd's configuration.
func (e *engine) configure(handlers map[string]tool) error {
	f, err := os.OpenFile(e.Config, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	plugin := "io.containerd.cri.v1.runtime"
	if e.Release.ConfigVersion == 2 {
		plugin = "io.containerd.grpc.v1.cri"
	}
	for _, name := range slices.Sorted(maps.Keys(handlers)) {
		if name == "runc" {
			continue // it is there
		}
		option := fmt.Sprintf("BinaryName = %q", handlers[name].binary)
		if env := handlers[name].env; env != nil {
			option = fmt.Sprintf("ConfigPath = %q", env.Config)
		}
		table := "plugins.'" + plugin + "'.containerd.runtimes." + name
		if _, err := fmt.Fprintf(f, "[%s]\n  runtime_type = '%s'\n  [%s.options]\n    %s\n", table, shimOf(handlers[name]), table, option); err != nil {
			return err
		}
	}
	return nil
}

// shimOf is the runtime as containerd calls it.
func shimOf(t tool) string {
	if t.env != nil {
		return "io.containerd.kata.v2"
	}
	return "io.containerd.runc.v2"
}

// close ends containerd and removes what it has used.
func (e *engine) close() error {
	var errs []error
	if e.Client != nil {
		errs = append(errs, e.Close())
	}
	if e.Daemon != nil {
		errs = append(errs, e.Stop())
		e.RemoveCgroups()
	}
	if e.network != nil {
		errs = append(errs, e.network.Remove())
	}
	return errors.Join(errs...)
}

// ctr is `ctr run`.
type ctr struct {
	*engine
	tool tool
	root string // of the runtime's state
}

func (c *ctr) once(ctx context.Context) (Start, error) {
	return runOnce(c.run(ctx, c.rig.next(), []string{"--rm"}, "echo", "started"))
}

func (c *ctr) stay(ctx context.Context) (Container, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	made := &ctrContainer{c, c.rig.next()}
	if err := finish(c.run(ctx, made.id, []string{"--detach", "--null-io"}, "sleep", "100000")); err != nil {
		_ = made.Remove(ctx) // as far as there is something
		return nil, err
	}
	return made, nil
}

func (c *ctr) run(ctx context.Context, id string, flags []string, command ...string) *exec.Cmd {
	args := append([]string{
		"run", "--runtime", shimOf(c.tool), "--fifo-dir", c.Fifos, "--cgroup", c.CgroupParent + "/" + id,
		"--mount", "type=bind,src=" + c.rig.volume() + ",dst=" + Volume + ",options=rbind:rw",
	}, flags...)
	if c.tool.env != nil {
		args = append(args, "--runtime-config-path", c.tool.env.Config)
	} else {
		args = append(args, "--runc-binary", c.tool.binary, "--runc-root", c.root)
	}
	return c.Ctr(ctx, append(append(args, c.image, id), command...)...)
}

// ctrContainer is one of `ctr run --detach`.
type ctrContainer struct {
	*ctr
	id string
}

// Exec implements [Container].
func (c *ctrContainer) Exec(ctx context.Context, out io.Writer, command ...string) error {
	args := []string{"tasks", "exec", "--fifo-dir", c.Fifos, "--exec-id", c.rig.next(), c.id}
	return copyOutput(c.Ctr(ctx, append(args, command...)...), out)
}

// Remove implements [Container].
func (c *ctrContainer) Remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	for _, args := range [][]string{{"tasks", "delete", "--force", c.id}, {"containers", "delete", c.id}} {
		if err := finish(c.Ctr(ctx, args...)); err != nil {
			return err
		}
	}
	return nil
}
