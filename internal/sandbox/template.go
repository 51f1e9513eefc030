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
)

// Templates are the saved machines that sandboxes can be made from.
type Templates interface {
	// Find opens the one for the machine. The error wraps template.ErrNone when
	// there is none; with another one, too, the machine has to boot.
	Find(c vmm.Config) (*template.Template, error)
	// Want has one made for machines like this, in its own time. It returns soon.
	Want(ctx context.Context, c vmm.Config) error
}

// size is that of the machine to be.
func (s *Sandbox) size(o BootOptions) resources.VM {
	if o.Save != nil {
		return o.Save.Size
	}
	size := resources.Size(resources.LimitsOf(o.Resources), s.conf.Hypervisor)
	if s.opts.Templates == nil {
		return size
	}
	return machine.Class(size)
}

// fromTemplate makes the machine a copy of a saved one, if there is one. It is
// never a reason to fail: a machine that is not restored boots.
func (s *Sandbox) fromTemplate(ctx context.Context, cfg *vmm.Config) bool {
	// QEMU can restore no virtio-fs, and a vsock machine listens already.
	h := s.conf.Hypervisor
	if s.opts.Templates == nil || h.SharedFS == "virtio-fs" || h.Vsock == "on" {
		return false
	}
	defer timeline.Step(ctx, "find template")()
	kind := *cfg
	t, err := s.opts.Templates.Find(kind)
	if err != nil {
		if !errors.Is(err, template.ErrNone) {
			s.log.Warn("template is not used", "error", err)
		}
		s.want = func(ctx context.Context) error { return s.opts.Templates.Want(ctx, kind) }
		return false
	}
	s.undo.Push("template", func(context.Context) error { return t.Close() })
	cfg.Memory, cfg.State = t.Memory, t.State
	s.log.Info("sandbox is made from a template", "template", t.Key)
	return true
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
