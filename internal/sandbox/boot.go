package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/disk"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/mirror"
	"github.com/seed-efd44b36/kata/internal/resources"
	"github.com/seed-efd44b36/kata/internal/sandbox/enclosure"
	"github.com/seed-efd44b36/kata/internal/sandbox/failure"
	"github.com/seed-efd44b36/kata/internal/sandbox/guest"
	"github.com/seed-efd44b36/kata/internal/sandbox/machine"
	"github.com/seed-efd44b36/kata/internal/share"
	"github.com/seed-efd44b36/kata/internal/spec"
	"github.com/seed-efd44b36/kata/internal/template"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/seed-efd44b36/kata/internal/vmm"
)

// BootOptions describe the virtual machine.
type BootOptions struct {
	Hostname string
	// NetNS is the path of the network namespace whose interfaces the guest
	// gets; empty: loopback only.
	NetNS string
	// LateNetwork: the engine looks for the namespace at the virtual machine's
	// process, and may fill it as late as before the first container starts.
	LateNetwork bool
	// Resources of the containers together: their limits size the machine.
	// nil, or without limits: the default size.
	Resources *specs.LinuxResources
	// Sysctls of the network namespace (net.*), which is the guest's, and of the
	// guest's IPC namespace.
	Sysctls map[string]string
	// ShmBytes is the size of the /dev/shm that the containers of a pod share.
	ShmBytes uint64
	// CgroupParent overrides the configuration's, empty: as configured.
	CgroupParent string
	// Pod makes the sandbox itself a pod; nil: it is for one container, or for
	// a pod whose namespaces are those of its first container.
	Pod *Pod
	// Save makes Boot save the machine once its agent is at rest, instead of
	// preparing it for containers. Such a sandbox is of no further use.
	Save *Save
	// Warm makes Boot stop at a guest that has run a container and has no host. Give
	// is all that can be done with such a sandbox.
	Warm *Warm
}

// Warm says which machine is to wait for a sandbox.
type Warm struct {
	// Size of the machine, NICs the number of its network devices.
	Size resources.VM
	NICs int
}

// Save says which machine to save, and where to.
type Save struct {
	Warm
	// Memory is an empty file of the size of the memory, State an empty one.
	Memory, State *os.File
	// Check is called with what the machine is to be.
	Check func(vmm.Config) error
}

// ahead is the machine that is made ahead of a sandbox; nil: it is made for one.
func (o BootOptions) ahead() *Warm {
	if o.Save != nil {
		return &o.Save.Warm
	}
	return o.Warm
}

// Pod is what the containers have of a sandbox that is a pod: namespaces that a
// spec names by a path are its own.
type Pod struct {
	// Mounts are added to the spec of each container that has no mount of its
	// own there: read-only where its root is.
	Mounts []specs.Mount
}

// Boot starts the virtual machine and prepares the guest. On error the sandbox
// can only be closed. The error tells all that is known of the failure.
func (s *Sandbox) Boot(ctx context.Context, o BootOptions) error {
	ctx, done, err := s.Begin(ctx, 0)
	if err != nil {
		return s.explain(err)
	}
	defer done()
	ctx, end := timeline.Begin(s.Traced(ctx), "boot")
	defer end()
	if err := s.boot(ctx, o); err != nil {
		s.log.Warn("start failed", "steps", s.trace.Own())
		return s.explain(err)
	}
	s.mu.Lock()
	s.booted, s.pod = o.Warm == nil, o.Pod
	s.mu.Unlock()
	if o.Warm != nil {
		return nil
	}
	s.saveState()
	if s.want != nil {
		if err := s.want(ctx); err != nil {
			s.log.Warn("no template is made for the next sandbox", "error", err)
		}
	}
	return nil
}

func (s *Sandbox) boot(ctx context.Context, o BootOptions) error {
	img, err := s.image(ctx)
	if err != nil {
		return err
	}
	s.accel = vmm.Accel(s.conf.Hypervisor.Accel)
	if s.accel == vmm.AccelAuto {
		s.accel = s.opts.Accel(ctx)
	}
	if o.Resources != nil && o.Resources.CPU != nil {
		s.cpus = o.Resources.CPU.Cpus
	}
	size := s.size(o)
	if err := s.makeCgroup(ctx, o); err != nil {
		return err
	}
	if err := s.makeShare(ctx); err != nil {
		return err
	}
	if err := s.launch(ctx, img, size, o); err != nil {
		return err
	}
	if o.Warm != nil {
		return s.cgroup.Entered()
	}
	if o.Save == nil {
		s.background.Go(s.watchLink)
	}
	if s.conf.Runtime.Debug {
		s.background.Go(func() { s.guest.FollowLog(s.life, s.log) })
	}
	s.mirrors = mirror.New(s.opts.HostMounts, func(ctx context.Context, r *agentv1.WriteVolumeRequest) error {
		_, err := s.guest.WriteVolume(ctx, r)
		return guest.Error(err, false)
	}, s.log)
	s.home.Push("copies of volumes", func(context.Context) error { s.mirrors.Close(); return nil })
	if err := s.cgroup.Entered(); err != nil {
		return err
	}
	// After the boot, which would only take longer for it.
	limits := resources.LimitsOf(o.Resources)
	return s.cgroup.Confine(limits.CPUs, resources.Size(limits, s.conf.Hypervisor))
}

// launch makes the machine and prepares its guest: a warm clone or a copy of a
// template where there is one, else a machine that boots.
func (s *Sandbox) launch(ctx context.Context, img guestimage.Image, size resources.VM, o BootOptions) error {
	cfg := machine.Config(s.conf.Hypervisor, img, s.accel, size)
	cfg.ID, cfg.Dir, cfg.Unprivileged, cfg.Place = s.id, s.home.Dir, true, s.cgroup.Place
	if done, err := s.takeOver(ctx, cfg, img, o); done || err != nil {
		return err
	}
	if err := s.attachNetwork(ctx, o, nil); err != nil {
		return err
	}
	s.joint.Join(&cfg)
	cfg.MachineType = machine.Type(s.conf.Hypervisor.MachineType, img.Kernel, len(cfg.NICs))
	if o.Save != nil {
		cfg.Memory = o.Save.Memory
		if err := o.Save.Check(cfg); err != nil {
			return err
		}
		return s.start(ctx, cfg, "9p", o)
	}
	done, spoiled, err := s.restore(ctx, cfg, o)
	if done || err != nil {
		return err
	}
	if o.Warm != nil {
		return fmt.Errorf("warm clone: %w", template.ErrNone)
	}
	s.joint.Join(&cfg) // what a machine has had is of no use to another
	if err := machine.AddVsock(&cfg, s.conf.Hypervisor); err != nil {
		return err
	}
	if err := s.start(ctx, cfg, s.conf.Hypervisor.SharedFS, o); err != nil {
		return err
	}
	spoiled()
	return nil
}

// start is the part that BootTimeout is for.
func (s *Sandbox) start(ctx context.Context, cfg vmm.Config, fs string, o BootOptions) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(s.conf.Runtime.BootTimeout)*time.Second)
	defer cancel()
	if cfg.Share, err = s.serveShare(ctx, fs); err != nil {
		return err
	}
	if err = s.startMachine(ctx, cfg); err == nil && cfg.State == nil && cfg.Running == nil {
		s.watch()
	}
	if err == nil {
		err = s.connect(ctx, cfg)
	}
	switch {
	case err != nil:
	case o.Save != nil:
		err = s.save(ctx, o.Save)
	case o.Warm != nil:
		err = s.rehearse(ctx)
	default:
		err = s.setupGuest(ctx, o)
	}
	if err == nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return err
	}
	if !errors.Is(err, guest.ErrNoAnswer) {
		err = fmt.Errorf("%w: %w", guest.ErrNoAnswer, err)
	}
	return fmt.Errorf("%w (boot_timeout is %d s)", err, s.conf.Runtime.BootTimeout)
}

func (s *Sandbox) image(ctx context.Context) (guestimage.Image, error) {
	defer timeline.Step(ctx, "guest image")()
	img, err := s.opts.Image(ctx)
	if err != nil {
		return guestimage.Image{}, fmt.Errorf("guest image: %w", err)
	}
	return img, nil
}

func (s *Sandbox) makeCgroup(ctx context.Context, o BootOptions) (err error) {
	parent := o.CgroupParent
	if parent == "" {
		parent = s.conf.Runtime.CgroupParent
	}
	path := filepath.Join(parent, s.id)
	if err := s.Own(cleanup.Record{Kind: cleanup.KindCgroup, Name: path}, nil); err != nil {
		return err
	}
	s.cgroup, err = enclosure.Make(ctx, path, s.cpus, s.log)
	return err
}

// Own records a resource in the ledger. It is called before the resource
// exists; from then on Close releases it, with release, or with cleanup.Release
// when that is nil.
func (s *Sandbox) Own(rec cleanup.Record, release cleanup.Releaser) error {
	return s.home.Own(rec, release)
}

// OnClose arranges for Close to call f, before anything that is there already
// is released. For what ends with the process anyhow and needs no record.
func (s *Sandbox) OnClose(name string, f func(context.Context) error) { s.home.Push(name, f) }

func (s *Sandbox) makeShare(ctx context.Context) error {
	defer timeline.Step(ctx, "shared directory")()
	dir := filepath.Join(s.home.Dir, "shared")
	if err := s.home.Record(cleanup.Record{Kind: cleanup.KindMount, Name: dir}); err != nil {
		return err
	}
	d, err := share.Prepare(dir, s.opts.HostMounts)
	if err != nil {
		return fmt.Errorf("shared directory: %w", err)
	}
	s.share = d
	s.home.Push("shared directory", func(context.Context) error { return d.Close() })
	return nil
}

// serveShare starts the server of the shared directory. Should we die, it ends
// with us; and its cgroup, which is in the ledger, is emptied by whoever collects
// what is left.
func (s *Sandbox) serveShare(ctx context.Context, fs string) (vmm.Share, error) {
	defer timeline.Step(ctx, "file server")()
	conf := share.ServerConfig{
		FS: fs, Daemon: s.conf.Hypervisor.VirtioFSDaemon, Socket: filepath.Join(s.home.Dir, "virtiofsd.sock"), Place: s.cgroup.Place,
	}
	if s.clone != nil {
		conf.Left = s.clone.Share
	}
	srv, err := s.share.Serve(ctx, conf)
	if err != nil {
		return vmm.Share{}, err
	}
	s.home.Push("file server", srv.Close)
	s.files = srv
	return vmm.Share{Tag: machine.ShareTag, Socket: srv.Socket(), Server: srv.Peer()}, nil
}

func (s *Sandbox) startMachine(ctx context.Context, cfg vmm.Config) error {
	ctx, end := timeline.Begin(ctx, "VMM")
	defer end()
	// The process carries the sandbox's id in its arguments, by which it can
	// be found again should we die between these lines.
	if err := s.home.Record(cleanup.Record{Kind: cleanup.KindProcess, Name: s.id}); err != nil {
		return err
	}
	m, err := s.opts.NewMachine(cfg, s.log)
	if err != nil {
		return fmt.Errorf("virtual machine: %w", err)
	}
	s.home.Push("virtual machine", func(ctx context.Context) error { m.Kill(ctx); return nil })
	err = m.Start(ctx)
	if cfg.Share.Server != nil {
		_ = cfg.Share.Server.Close() // the machine has it
	}
	if err != nil {
		return err
	}
	s.machine, s.disks = m, disk.New(m, s.opts.HostMounts)
	late := []int{os.Getpid()}
	if s.clone != nil {
		late = append(m.PIDs(), late...)
	}
	s.background.Go(func() { s.cgroup.Gather(late...) })
	return nil
}

// watch lets the sandbox end with its machine or file server. A restored machine may
// still be replaced until its guest is ready.
func (s *Sandbox) watch() {
	s.background.Go(s.watchMachine)
	s.background.Go(s.watchFiles)
}

// watchFiles ends the sandbox when its file server has, without which every access
// to a file hangs.
func (s *Sandbox) watchFiles() {
	select {
	case <-s.files.Done():
	case <-s.life.Done():
		return
	}
	select {
	case <-s.life.Done(): // it only followed the virtual machine
	case <-time.After(lostGrace):
		s.die(fmt.Errorf("the file server of the sandbox ended: %w", s.files.Err()))
	}
}

// watchMachine ends the sandbox when the virtual machine has ended.
func (s *Sandbox) watchMachine() {
	select {
	case <-s.machine.Done():
		e := s.machine.Kill(s.life)
		s.die(failure.Death(e))
	case <-s.life.Done():
	}
}

// connect makes the link and waits for the agent's first answer.
func (s *Sandbox) connect(ctx context.Context, cfg vmm.Config) error {
	ctx, end := timeline.Begin(ctx, "agent's first answer")
	defer end()
	g, err := guest.Connect(ctx, s.machine, cfg.VsockCID)
	if err != nil {
		return err
	}
	s.home.Push("link", func(context.Context) error { g.Close(); return nil })
	s.guest = g
	s.log.Info("guest is up", "kernel", g.Kernel, "agent_rss_bytes", g.RSS)
	return nil
}

// watchLink ends the sandbox after its rpc stream has ended.
func (s *Sandbox) watchLink() {
	if s.guest.Wait(s.life) != nil {
		return
	}
	select {
	case <-s.machine.Done(): // its watcher knows the better reason
	case <-s.life.Done():
	case <-time.After(lostGrace):
		s.die(guest.ErrLost)
	}
}

func (s *Sandbox) setupGuest(ctx context.Context, o BootOptions) error {
	req := &agentv1.SetupSandboxRequest{
		Id: s.id, Hostname: o.Hostname, ShmBytes: o.ShmBytes, Sysctls: o.Sysctls,
		Storages: []*agentv1.Storage{s.share.Storage(machine.ShareTag, spec.GuestShared)},
	}
	if nw := s.joint.Network(); len(nw.GetInterfaces()) > 0 || s.joint.Namespace() == nil {
		req.Network = nw // else it is told of spare devices in time
	}
	return s.guest.Setup(ctx, req)
}
