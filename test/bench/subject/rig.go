package subject

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/test/bench/account"
	"github.com/seed-efd44b36/kata/test/bench/result"
	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// Options say what a rig is to have.
type Options struct {
	// Want tells whether a subject is wanted, by its name.
	Want func(name string) bool
	// Containerd is the version to build and use, empty: Debian's.
	Containerd string
	// Step is told what is being done.
	Step func(string)
}

// Rig is what all subjects of a run share: directories, an image, a containerd,
// and the cgroup that everything runs in.
type Rig struct {
	// Account tells what everything below the rig's cgroup has used.
	Account *account.Group
	// Subjects are those that run here; each has been tried.
	Subjects []*Subject
	// Skipped tells of the others why not, and of subjects what they lack.
	Skipped []result.Skip
	// About describes what was started: versions, accelerator, kernel.
	About []string
	// Step is told what is being done.
	Step func(string)

	env    *harness.Env
	remove func() error
	dir    string // for files of this run
	image  string // directory of the image's OCI layout
	bare   *bareMachine
	engine *engine
	count  atomic.Int64 // of configurations and containers
}

// tryTimeout is for a runtime to show that it works, on a machine that is busy.
const tryTimeout = 5 * time.Minute

// New makes a rig; Close removes it.
func New(ctx context.Context, o Options) (_ *Rig, err error) {
	env, remove, err := harness.New("")
	if err != nil {
		return nil, err
	}
	r := &Rig{env: env, remove: remove, dir: filepath.Dir(env.Data), Step: o.Step}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if r.Account, err = account.New(r.name()); err != nil {
		return nil, err
	}
	r.Step("image")
	if err := r.files(ctx); err != nil {
		return nil, err
	}
	if o.Want(QEMU) || slices.ContainsFunc(Names(), func(n string) bool { return strings.HasPrefix(n, "kata-") && o.Want(n) }) {
		if err := r.machine(ctx); err != nil {
			return nil, err
		}
	}
	found, err := r.find(ctx, o)
	if err != nil {
		return nil, err
	}
	for _, s := range found {
		r.Step("trying " + s.String())
		if err := r.try(ctx, s); err != nil {
			r.Skipped = append(r.Skipped, result.Skip{
				Subject: s.String(), Why: fmt.Sprintf("does not run here: %.300s", oneLine(err.Error())), Failed: s.IsKata() || s.Runtime == QEMU,
			})
			continue
		}
		r.Subjects = append(r.Subjects, s)
	}
	return r, ctx.Err()
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// try runs a subject once, which warms it up.
func (r *Rig) try(ctx context.Context, s *Subject) error {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	if _, err := s.Once(ctx); err != nil {
		return err
	}
	// The first start of a kind may leave a template in the making.
	return r.Account.Settle(ctx, tryTimeout)
}

// name is what the rig's cgroup, and all that needs a name, is called.
func (r *Rig) name() string { return filepath.Base(filepath.Dir(r.env.State)) }

// next returns a name for a container.
func (r *Rig) next() string {
	return fmt.Sprintf("bench-%d", r.count.Add(1))
}

// volume is the directory of the host that containers have at [Volume].
func (r *Rig) volume() string { return filepath.Join(r.dir, "volume") }

// Warm reads all files that containers read into the host's page cache, where
// they may not be any more.
func (r *Rig) Warm() error {
	patterns := []string{filepath.Join(r.volume(), "*")}
	if r.engine != nil {
		patterns = append(patterns, filepath.Join(r.engine.Root, "io.containerd.snapshotter.v1.*", "snapshots", "*", "fs", Data, "*"))
	}
	for _, p := range patterns {
		files, err := filepath.Glob(p)
		if err != nil {
			return err
		}
		for _, name := range files {
			// Another container may just have removed what it has written.
			if _, err := os.ReadFile(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("read a file of the benchmark: %w", err)
			}
		}
	}
	return nil
}

// script writes a program that runs a runtime with what it needs here.
func (r *Rig) script(name, text string) (string, error) {
	file := filepath.Join(r.dir, name)
	return file, os.WriteFile(file, []byte("#!/bin/sh\n"+text+"\n"), 0o755)
}

// configure makes a configuration with further lines.
func (r *Rig) configure(lines string) (*harness.Env, error) {
	conf, err := os.ReadFile(r.env.Config)
	if err != nil {
		return nil, err
	}
	env := *r.env
	env.Config = filepath.Join(r.dir, r.next()+".toml")
	return &env, os.WriteFile(env.Config, append(conf, "\n"+lines...), 0o600)
}

// find makes the subjects that are wanted, and what they need.
func (r *Rig) find(ctx context.Context, o Options) ([]*Subject, error) {
	type candidate struct {
		runtime runtime
		tool    tool
		fronts  []string
	}
	var found []candidate
	fronts := map[string]bool{}
	for _, rt := range runtimes() {
		wanted := slices.DeleteFunc(slices.Clone(rt.fronts), func(f string) bool { return !o.Want(rt.name + "/" + f) })
		if len(wanted) == 0 {
			continue
		}
		t, err := rt.ready(ctx, r)
		if ctx.Err() != nil {
			return nil, err
		}
		if err != nil {
			r.Skipped = append(r.Skipped, result.Skip{Subject: rt.name, Why: fmt.Sprintf("%.500s", oneLine(err.Error()))})
			continue
		}
		if t.about != "" {
			r.About = append(r.About, t.about)
		}
		if rt.lacks != "" {
			r.Skipped = append(r.Skipped, result.Skip{Subject: rt.name, Why: rt.lacks})
		}
		found = append(found, candidate{rt, t, wanted})
		for _, f := range wanted {
			fronts[f] = true
		}
	}
	var bundles *bundles
	var err error
	if fronts[OCI] {
		if bundles, err = newBundles(ctx, r); err != nil {
			return nil, err
		}
	}
	if fronts[Ctr] || fronts[CRI] {
		handlers := map[string]tool{}
		for _, c := range found {
			handlers[c.runtime.name] = c.tool
		}
		if r.engine, err = newEngine(ctx, r, o.Containerd, handlers); err != nil {
			return nil, err
		}
	}
	var list []*Subject
	if o.Want(QEMU) {
		list = append(list, &Subject{Runtime: QEMU, front: r.bare})
	}
	for _, c := range found {
		for _, name := range c.fronts {
			s := &Subject{Runtime: c.runtime.name, Front: name}
			switch name {
			case Ctr:
				s.front = &ctr{r.engine, c.tool, r.root(s)}
			case CRI:
				s.front = &pods{r.engine, c.runtime.name}
			case CLI:
				s.front = &cli{r, c.tool.env}
			case OCI:
				s.front = &oci{bundles, c.tool, r.root(s)}
			}
			list = append(list, s)
		}
	}
	return list, nil
}

// machine runs a first container, which makes the guest image, and makes the
// machine that starts are compared with of what that has used.
func (r *Rig) machine(ctx context.Context) (err error) {
	r.Step("first container of kata")
	c, err := (&cli{r, r.env}).stay(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Remove(ctx)) }()
	states, err := report.List(r.env.State)
	if err != nil {
		return err
	}
	if len(states) != 1 {
		return fmt.Errorf("%d sandboxes, want 1", len(states))
	}
	st := states[0]
	r.About = append(r.About, version(ctx, "qemu-system-x86_64"), "accelerator "+st.Accel, "guest Linux "+st.Kernel)
	conf, err := config.Load(r.env.Config)
	if err != nil {
		return err
	}
	h, rt := conf.Config.Hypervisor, conf.Config.Runtime
	image, err := (&guestimage.Builder{CacheDir: rt.CacheDir, Agent: filepath.Join(r.env.Bin, "kata-agent"), Kernel: h.Kernel, Modules: h.KernelModules}).Ensure(ctx)
	if err != nil {
		return err
	}
	r.bare, err = newBareMachine(r.dir, image.Kernel.VMLinux, st.Accel)
	return err
}

// Close ends containerd and removes everything.
func (r *Rig) Close() error {
	var err error
	if r.engine != nil {
		err = r.engine.close()
	}
	if r.Account != nil {
		err = errors.Join(err, r.Account.Kill(), r.Account.Close())
	}
	return errors.Join(err, r.unmount(), r.remove())
}

// unmount takes away what runtimes leave mounted: runsc a network namespace.
func (r *Rig) unmount() error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || !strings.HasPrefix(fields[4], filepath.Dir(r.env.State)+"/") {
			continue
		}
		if err := unix.Unmount(fields[4], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", fields[4], err))
		}
	}
	return errors.Join(errs...)
}

// root is where a subject with runc's command line keeps its state.
func (r *Rig) root(s *Subject) string {
	return filepath.Join(filepath.Dir(r.env.State), s.Runtime+"-"+s.Front)
}

// finish runs a command to its end, which has to be a success.
func finish(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
