package engine

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/oci/pods"
	"github.com/seed-efd44b36/kata/internal/oci/record"
	"github.com/seed-efd44b36/kata/internal/owner"
	"github.com/seed-efd44b36/kata/internal/pod"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/spec"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/spf13/cobra"
)

// endTimeout bounds the end of a sandbox, and the undoing of what was begun.
const endTimeout = time.Minute

// createFlags are those of create and run.
type createFlags struct {
	bundle, pidFile, consoleSocket string
	preserveFDs                    int
	noPivot, noNewKeyring          bool
	detach, keep, noSubreaper      bool
}

func (fl *createFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&fl.bundle, "bundle", "b", "", "`directory` of the bundle (default: this one)")
	f.StringVar(&fl.pidFile, "pid-file", "", "write the pid of the container's kata-shim to this `file`")
	f.StringVar(&fl.consoleSocket, "console-socket", "", "send the container's terminal to this unix `socket`")
	f.IntVar(&fl.preserveFDs, "preserve-fds", 0, "refused unless 0: descriptors of the host cannot enter a virtual machine")
	f.BoolVar(&fl.noPivot, "no-pivot", false, "accepted: the root file system is entered in the guest")
	f.BoolVar(&fl.noNewKeyring, "no-new-keyring", false, "accepted: keyrings are the guest's")
}

func (a *Verbs) createCommand() *cobra.Command {
	var fl createFlags
	cmd := &cobra.Command{
		Use:   "create [flags] CONTAINER",
		Short: "Create a container, which waits to be started",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			fl.detach = true
			b, err := a.create(cmd.Context(), args[0], fl)
			if err != nil {
				return err
			}
			return b.leave()
		},
	}
	fl.add(cmd)
	return cmd
}

// place is where a container is to be: in a sandbox of its own, or in one that
// there is.
type place struct {
	sandbox string
	joins   bool
	// pids are what the engine was told for the containers that are there.
	pids map[int64]string
}

// birth is a container that is being created, and what is to be undone if that
// fails.
type birth struct {
	id    string
	fl    createFlags
	spec  *specs.Spec
	plan  *spec.Plan
	entry *record.Entry
	rec   record.Record

	stand  // its kata-shim
	place  place
	client *proxy.Client
	undo   cleanup.Stack
}

// create creates a container, up to where it waits to be started.
func (a *Verbs) create(ctx context.Context, id string, fl createFlags) (_ *birth, err error) {
	ctx = timeline.Program("kata-runtime").In(ctx)
	b := &birth{id: id, fl: fl}
	b.a = a
	if err := b.read(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(explainCommand(err), b.abandon(ctx))
		}
	}()
	for _, step := range []func(context.Context) error{b.enter, b.spawn, b.prestart, b.boot, b.create} {
		if err := step(ctx); err != nil {
			return b, err
		}
	}
	return b, nil
}

// read reads the bundle, and refuses what cannot be had.
func (b *birth) read() (err error) {
	dir := cmp.Or(b.fl.bundle, ".")
	if dir, err = filepath.Abs(dir); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if b.spec, err = spec.Load(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("JSON specification file config.json not found in %s", dir)
	} else if err != nil {
		return err
	}
	if b.fl.preserveFDs > 0 {
		return errPreserveFDs
	}
	b.stand = stand{a: b.a, container: b.id, consoleSocket: b.fl.consoleSocket, detach: b.fl.detach}
	if p := b.spec.Process; p != nil {
		b.tty, b.size = p.Terminal, p.ConsoleSize
	}
	if err := b.check(); err != nil {
		return err
	}
	if err := record.CheckID(b.id); err != nil {
		return err
	}
	if b.place, err = b.a.placeOf(b.id, b.spec); err != nil {
		return err
	}
	b.sandbox = b.place.sandbox
	b.rec = record.Record{
		ID: b.id, Bundle: dir, Created: time.Now().UTC(), UID: uint32(os.Getuid()),
		Annotations: b.spec.Annotations, Sandbox: b.place.sandbox,
	}
	b.told = noticeTo(b.spec, dir, os.Getenv(eventsEnv))
	return b.translate(dir)
}

// translate tells what of the spec cannot be had, before anything is made.
func (b *birth) translate(dir string) (err error) {
	o := spec.Options{ID: b.id, SandboxID: b.place.sandbox, Bundle: dir, PIDs: map[int]string{}}
	for pid, id := range b.place.pids {
		o.PIDs[int(pid)] = id
		o.Members = append(o.Members, id)
	}
	if b.plan, err = spec.Translate(b.spec, o); err != nil {
		return err
	}
	b.rec.Rootfs = b.plan.Rootfs
	b.rec.Poststart, b.rec.Poststop = b.plan.Hooks.AfterStart, b.plan.Hooks.AfterStop
	return nil
}

// enter takes the id.
func (b *birth) enter(context.Context) (err error) {
	if b.entry, err = b.a.containers().Create(b.id); err != nil {
		return err
	}
	b.undo.Push("state of the container", func(context.Context) error { return b.entry.Remove() })
	// Also of a container that fails: they take back what the hooks before have made.
	b.undo.Push("hooks", func(ctx context.Context) error { b.a.poststop(ctx, b.rec); return nil })
	return nil
}

// spawn starts the kata-shim: hooks find the network namespace at its pid.
func (b *birth) spawn(ctx context.Context) (err error) {
	b.netns = b.plan.NetNS
	if err := b.stand.spawn(ctx); err != nil {
		return err
	}
	b.undo.Push("kata-shim", func(context.Context) error { b.kill(); return nil })
	if b.rec.Shim, err = record.Identify(b.child.PID); err != nil {
		return err
	}
	return b.entry.Write(b.rec)
}

// prestart runs the hooks that set up the network, before anybody looks at it.
func (b *birth) prestart(ctx context.Context) error {
	return runHooks(ctx, b.plan.Hooks.BeforeCreate, b.rec, specs.StateCreating)
}

// boot boots the sandbox, or connects to the one to join.
func (b *birth) boot(ctx context.Context) (err error) {
	conf := b.a.Conf.Runtime
	if b.place.joins {
		if b.client, err = proxy.Dial(ctx, conf.StateDir, b.place.sandbox); err != nil {
			return fmt.Errorf("the sandbox %s of container %s is not running: %w", b.place.sandbox, b.id, err)
		}
		return nil
	}
	if err := owner.Prepare(ctx, b.a.Conf, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	b.client, err = proxy.Spawn(ctx, proxy.SpawnOptions{ID: b.place.sandbox, Config: b.a.Conf, ConfigPath: b.a.ConfigPath})
	if err != nil {
		return err
	}
	b.undo.Push("sandbox", func(ctx context.Context) error {
		// Should kata-proxy have died, what it left is removed here.
		if err := b.client.End(ctx); err != nil {
			return err
		}
		return b.a.collect(ctx, b.place.sandbox)
	})
	limits, err := pod.Resources(b.spec)
	if err != nil {
		return err
	}
	resources, err := json.Marshal(limits)
	if err != nil {
		return fmt.Errorf("encode resources: %w", err)
	}
	r := &proxyv1.BootRequest{
		Hostname: b.spec.Hostname, Netns: b.plan.NetNS, Resources: resources, CgroupParent: pod.CgroupParent(b.spec), EndWithLastContainer: true,
	}
	if r.GetNetns() == "" {
		// Who fills a new one does so by the hooks that have been run, or later.
		r.Netns = netnsOf(b.child.PID)
		r.LateNetwork = len(b.plan.Hooks.BeforeCreate) == 0
	}
	_, err = b.client.Boot(ctx, r)
	return proxy.Explain(err)
}

// create creates the container in the guest and gives it to the kata-shim.
func (b *birth) create(ctx context.Context) error {
	// Meanwhile: to move a process takes the kernel its time.
	followed := make(chan error, 1)
	go func() { followed <- b.follow() }() // waited for below
	err := b.createInGuest(ctx)
	return errors.Join(err, <-followed)
}

func (b *birth) createInGuest(ctx context.Context) error {
	_, err := b.client.Create(ctx, &proxyv1.CreateRequest{
		Id: b.id, Bundle: b.rec.Bundle, Stdin: true, Stdout: true, Stderr: !b.tty, OwnHooks: true, Pids: b.place.pids, Uid: b.rec.UID,
	})
	if err != nil {
		return proxy.Explain(err)
	}
	b.undo.Push("container", func(ctx context.Context) error {
		_, err := b.client.Delete(ctx, &proxyv1.DeleteRequest{Container: b.id})
		return proxy.Explain(err)
	})
	if err := b.join(); err != nil {
		return err
	}
	if b.fl.pidFile != "" {
		if err := writePID(b.fl.pidFile, b.child.PID); err != nil {
			return err
		}
	}
	b.rec.Ready = true
	return b.entry.Write(b.rec)
}

// leave lets the container go on without us.
func (b *birth) leave() error {
	err := errors.Join(b.client.Disown(), b.stand.leave())
	b.undo.Disarm()
	_ = b.client.Close()
	b.entry.Unlock()
	return err
}

// abandon undoes what has been done.
func (b *birth) abandon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	err := b.undo.Run(ctx)
	if b.client != nil {
		_ = b.client.Close()
	}
	if b.entry != nil {
		b.entry.Unlock()
	}
	return err
}

// placeOf tells which sandbox a container is to be in.
func (a *Verbs) placeOf(id string, sp *specs.Spec) (place, error) {
	leader, err := pods.Leader(a.containers(), id, sp)
	if err != nil {
		return place{}, err
	}
	if leader == nil {
		return place{sandbox: a.sandboxName(id), pids: map[int64]string{}}, nil
	}
	p := place{sandbox: leader.Sandbox, joins: true, pids: map[int64]string{}}
	list, err := a.containers().List()
	for _, r := range list {
		if r.Sandbox == p.sandbox && r.Ready {
			p.pids[int64(r.Shim.PID)] = r.ID
		}
	}
	return p, err
}

// sandboxName is a name for the sandbox of a container: its id, if no other engine
// has a container of that id.
func (a *Verbs) sandboxName(id string) string {
	if _, err := os.Lstat(filepath.Join(a.Conf.Runtime.StateDir, id)); err != nil {
		return id
	}
	return a.hashedName(id)
}

// hashedName is the name of a container's sandbox where its id is taken.
func (a *Verbs) hashedName(id string) string {
	const few = 12
	hash := fmt.Sprintf("%x", sha256.Sum256([]byte(filepath.Join(a.Root, id))))
	return id[:min(few, len(id))] + "-" + hash[:few]
}

// writePID writes a pid file in one step.
func writePID(path string, pid int) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	if err := os.WriteFile(tmp, []byte(strconv.Itoa(pid)), 0o666); err != nil {
		return fmt.Errorf("pid file: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("pid file: %w", err)
	}
	return nil
}
