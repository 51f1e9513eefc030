package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/network"
	"github.com/seed-efd44b36/kata/internal/sandbox/guest"
	"github.com/seed-efd44b36/kata/internal/sandbox/machine"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/seed-efd44b36/kata/internal/vmm"
)

const (
	// nics is how many network devices a machine with a network has at least.
	nics = 1
	// lateNICs is the same where the engine fills the namespace later, with more
	// than one interface perhaps.
	lateNICs = 2
)

// joint is where a namespace of the host and the guest's network meet.
type joint struct {
	*network.Attachment

	mu      sync.Mutex
	settled bool // guarded by mu
}

// attachNetwork joins the namespace to the devices of the machine to be.
func (s *Sandbox) attachNetwork(ctx context.Context, o BootOptions, cfg *vmm.Config) error {
	ctx, end := timeline.Begin(ctx, "network")
	defer end()
	least := nics
	if o.LateNetwork {
		least = lateNICs
	}
	if o.Save != nil {
		least = o.Save.NICs
	}
	var at *network.Attachment
	var err error
	switch {
	case o.NetNS == "":
		// Devices all the same: it is a machine of the same kind then.
		at, err = network.Idle(least)
	case filepath.Dir(o.NetNS) == s.dir:
		at, err = network.AttachOwn(ctx, o.NetNS, least)
	default:
		at, err = network.Attach(ctx, o.NetNS, least)
	}
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	s.undo.Push("network", func(context.Context) error { return at.Close() })
	s.joint = &joint{Attachment: at}
	if o.LateNetwork {
		cfg.NetNS = at.Namespace()
	}
	for _, n := range at.NICs() {
		cfg.NICs = append(cfg.NICs, vmm.NIC{MAC: n.MAC, Tap: n.Tap})
	}
	return s.renewVhost(cfg.NICs)
}

// renewVhost gives each device a vhost-net of its own, if there are any: one that a
// machine has had is of no use to another.
func (s *Sandbox) renewVhost(nics []vmm.NIC) error {
	if !machine.Use(s.conf.Hypervisor.VhostNet, "/dev/vhost-net") {
		return nil
	}
	for i := range nics {
		f, err := os.OpenFile("/dev/vhost-net", os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("vhost-net: %w", err)
		}
		s.undo.Push("vhost-net", func(context.Context) error { return f.Close() })
		nics[i].VhostNet = f
	}
	return nil
}

// settleNetwork is called before a container starts. Once it passes on
// what has come into the namespace since the boot; what changes afterwards is
// passed on until the sandbox ends.
func (s *Sandbox) settleNetwork(ctx context.Context) error {
	j := s.joint
	if j.Namespace() == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.settled {
		return nil
	}
	defer timeline.Step(ctx, "settle network")()
	f, err := j.Follow(ctx, s.tellNetwork, s.log)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	j.settled = true
	s.undo.Push("watch of the network", func(context.Context) error { return f.Close() })
	return nil
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
