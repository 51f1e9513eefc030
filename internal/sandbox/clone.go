package sandbox

import (
	"context"
	"errors"
	"io"
	"path/filepath"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/sandbox/guest"
	"github.com/seed-efd44b36/kata/internal/sandbox/joint"
	"github.com/seed-efd44b36/kata/internal/sandbox/machine"
	"github.com/seed-efd44b36/kata/internal/sandbox/rehearsal"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/warm"
)

// takeOver makes a warm clone the sandbox's machine, if one waits. One that cannot be
// used is no reason to fail.
func (s *Sandbox) takeOver(ctx context.Context, cfg vmm.Config, img guestimage.Image, o BootOptions) (done bool, err error) {
	// To hold a machine to some of the host's CPUs it has to be born there.
	if s.conf.Factory.VMCacheNumber == 0 || !s.templated() || o.ahead() != nil || s.cpus != "" {
		return false, nil
	}
	c, err := s.claim(ctx, &cfg, img, o)
	if err != nil {
		if !errors.Is(err, warm.ErrNone) {
			s.log.Warn("no warm clone is used", "error", err)
		}
		return false, nil
	}
	err = s.adopt(ctx, cfg, c, o)
	if err == nil {
		s.watch()
		s.log.Info("sandbox is a warm clone", "clone", c.ID)
		return true, nil
	}
	if s.guest != nil || ctx.Err() != nil || s.isDead() {
		return false, err
	}
	s.log.Warn("warm clone cannot be used", "clone", c.ID, "error", s.explain(err))
	s.dropMachine(ctx)
	if err := c.Release(context.WithoutCancel(ctx), s.log); err != nil {
		s.log.Warn("warm clone is left", "clone", c.ID, "error", err)
	}
	s.clone = nil
	if s.joint == nil {
		return false, nil
	}
	return false, s.joint.Close()
}

// claim looks for a clone that is a machine like this, whose type it sets.
func (s *Sandbox) claim(ctx context.Context, cfg *vmm.Config, img guestimage.Image, o BootOptions) (*warm.Clone, error) {
	defer timeline.Step(ctx, "claim warm clone")()
	nics, err := s.jointOptions(o).Devices()
	if err != nil {
		return nil, err
	}
	cfg.NICs = nics
	cfg.MachineType = machine.Type(s.conf.Hypervisor.MachineType, img.Kernel, len(nics))
	return s.opts.Templates.Claim(ctx, *cfg)
}

// adopt goes on with the clone as with a machine that has just been restored.
func (s *Sandbox) adopt(ctx context.Context, cfg vmm.Config, c *warm.Clone, o BootOptions) error {
	s.home.Push("warm clone", func(ctx context.Context) error { return c.Release(ctx, s.log) })
	for _, rec := range c.Records(s.conf.Runtime.CgroupParent) {
		if err := s.home.Record(rec); err != nil {
			return err
		}
	}
	s.clone = c
	if err := c.Hurry(); err != nil {
		return err
	}
	if err := s.attachNetwork(ctx, o, c); err != nil {
		return err
	}
	s.joint.Join(&cfg)
	cfg.Running = &c.Running
	return s.start(ctx, cfg, "9p", o)
}

func (s *Sandbox) jointOptions(o BootOptions) joint.Options {
	n := joint.Options{
		NetNS: o.NetNS, Dir: s.home.Dir, Late: o.LateNetwork,
		Vhost: machine.Use(s.conf.Hypervisor.VhostNet, "/dev/vhost-net"),
	}
	if w := o.ahead(); w != nil {
		n.NICs = w.NICs
	}
	return n
}

// attachNetwork joins the namespace to the devices of the machine to be, or to those
// of a clone.
func (s *Sandbox) attachNetwork(ctx context.Context, o BootOptions, c *warm.Clone) (err error) {
	ctx, end := timeline.Begin(ctx, "network")
	defer end()
	var j *joint.Joint
	if c != nil {
		j, err = joint.TakeOver(ctx, s.jointOptions(o), c.Devices)
	} else {
		j, err = joint.Attach(ctx, s.jointOptions(o))
	}
	if err != nil {
		return err
	}
	s.home.Push("network", func(context.Context) error { return j.Close() })
	s.joint = j
	return nil
}

func (s *Sandbox) settleNetwork(ctx context.Context) error {
	return s.joint.Settle(ctx, s.tellNetwork, s.guest.ResolveNames, s.log, func(f io.Closer) {
		s.home.Push("watch of the network", func(context.Context) error { return f.Close() })
	})
}

func (s *Sandbox) tellNetwork(ctx context.Context, nw *agentv1.Network) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := s.guest.UpdateNetwork(ctx, &agentv1.UpdateNetworkRequest{Network: nw})
	if s.isDead() {
		return nil // and nobody will miss it
	}
	return guest.Error(err, false)
}

// rehearse has the guest start containers, and leaves it as it was before.
func (s *Sandbox) rehearse(ctx context.Context) error {
	defer timeline.Step(ctx, "rehearse")()
	var devices []string
	for _, n := range s.joint.NICs() {
		devices = append(devices, n.MAC)
	}
	err := rehearsal.In(ctx, s.guest, s.share, filepath.Join(s.home.Dir, "stage"), devices)
	if err == nil {
		err = s.guest.Leave(ctx)
		s.guest = nil // it has no host
	}
	return err
}

// Give returns the machine that was made warm, for a sandbox of another process. This
// one goes on to be the parent of the machine, and ends with it.
func (s *Sandbox) Give() (warm.Gift, error) { return warm.NewGift(s.id, s.machine, s.files, s.joint) }

// dropMachine ends a machine that another one takes the place of.
func (s *Sandbox) dropMachine(ctx context.Context) {
	if s.machine == nil {
		return
	}
	s.machine.Kill(ctx)
	_ = s.cgroup.Entered() // of what has begun with it
	s.machine = nil
}
