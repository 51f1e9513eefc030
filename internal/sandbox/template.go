package sandbox

import (
	"context"
	"errors"
	"fmt"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/resources"
	"github.com/seed-efd44b36/kata/internal/sandbox/guest"
	"github.com/seed-efd44b36/kata/internal/sandbox/machine"
	"github.com/seed-efd44b36/kata/internal/template"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/warm"
)

// Templates are the saved machines that sandboxes can be made from.
type Templates interface {
	// Find opens the one for the machine. The error wraps template.ErrNone when
	// there is none; with another one, too, the machine has to boot.
	Find(c vmm.Config) (*template.Template, error)
	// Claim takes a warm clone of it. The error wraps warm.ErrNone when there is none.
	Claim(ctx context.Context, c vmm.Config) (*warm.Clone, error)
	// Want has one made for machines like this, and warm clones as configured, in its
	// own time. It returns soon.
	Want(ctx context.Context, c vmm.Config) error
	// Reject removes one that could not be restored, and remembers why.
	Reject(key string, why error)
}

// templated tells whether the machine may be a saved one: QEMU can restore no
// virtio-fs, and a vsock machine listens already.
func (s *Sandbox) templated() bool {
	h := s.conf.Hypervisor
	return s.opts.Templates != nil && h.SharedFS != "virtio-fs" && h.Vsock != "on"
}

// size is that of the machine to be.
func (s *Sandbox) size(o BootOptions) resources.VM {
	if w := o.ahead(); w != nil {
		return w.Size
	}
	size := resources.Size(resources.LimitsOf(o.Resources), s.conf.Hypervisor)
	if !s.templated() {
		return size
	}
	return machine.Class(size)
}

// restore starts the machine as a copy of a saved one, if there is one. A template
// that cannot be used is never a reason to fail: the machine boots then, and when
// that works the template was to blame, which spoiled tells.
func (s *Sandbox) restore(ctx context.Context, cfg vmm.Config, o BootOptions) (done bool, spoiled func(), err error) {
	spoiled = func() {}
	if !s.templated() {
		return false, spoiled, nil
	}
	kind := cfg
	s.want = func(ctx context.Context) error { return s.opts.Templates.Want(ctx, kind) }
	end := timeline.Step(ctx, "find template")
	t, err := s.opts.Templates.Find(kind)
	end()
	if err != nil {
		if !errors.Is(err, template.ErrNone) {
			s.log.Warn("template is not used", "error", err)
		}
		return false, spoiled, nil
	}
	defer t.Close()
	cfg.Memory, cfg.State = t.Memory, t.State
	if err = s.start(ctx, cfg, "9p", o); err == nil {
		if s.conf.Factory.VMCacheNumber == 0 {
			s.want = nil
		}
		if o.Warm == nil {
			s.watch()
		} else {
			s.background.Go(s.watchMachine)
		}
		s.log.Info("sandbox was made from a template", "template", t.Key)
		return true, spoiled, nil
	}
	// Once the agent has answered, what fails is not the template's fault.
	if s.guest != nil || ctx.Err() != nil || s.isDead() {
		return false, spoiled, err
	}
	why := s.explain(err)
	s.log.Warn("template cannot be used: the machine boots", "template", t.Key, "error", why)
	s.dropMachine(ctx)
	if !errors.Is(why, guest.ErrNoAnswer) { // on a busy host it may only be slow
		spoiled = func() { s.opts.Templates.Reject(t.Key, why) }
	}
	return false, spoiled, s.joint.RenewVhost()
}

// save brings the guest to rest and saves the machine.
func (s *Sandbox) save(ctx context.Context, o *Save) error {
	defer timeline.Step(ctx, "save the machine")()
	if _, err := s.guest.Settle(ctx, &agentv1.SettleRequest{}); err != nil {
		return fmt.Errorf("bring the guest to rest: %w", guest.Error(err, false))
	}
	saver, ok := s.machine.(vmm.Saver)
	if !ok {
		return fmt.Errorf("this kind of virtual machine cannot be saved: %w", errors.ErrUnsupported)
	}
	if err := s.guest.Leave(ctx); err != nil {
		return err
	}
	return saver.Save(ctx, o.State)
}
