// Package joint is where a network namespace of the host and a guest's network meet:
// the machine's network devices, what they are joined to, and what the guest is told
// of that. It gives internal/network's parts to one sandbox.
package joint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/network"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/seed-efd44b36/kata/internal/vmm"
)

const (
	// nics is how many network devices a machine has at least.
	nics = 1
	// lateNICs is the same where the engine fills the namespace later, with more
	// than one interface perhaps.
	lateNICs = 2
)

// vhostNet is the kernel's back end of network devices.
const vhostNet = "/dev/vhost-net"

// Options say what to join.
type Options struct {
	// NetNS is the path of the namespace; empty: none. One in Dir is the sandbox's
	// own, and goes with it.
	NetNS, Dir string
	// Late: the engine looks for the namespace at the virtual machine's process, and
	// may fill it as late as before the first container starts.
	Late bool
	// NICs, if not 0, is how many devices there are at least.
	NICs int
	// Vhost: devices have the kernel's back end.
	Vhost bool
}

func (o Options) least() int {
	switch {
	case o.NICs != 0:
		return o.NICs
	case o.Late:
		return lateNICs
	default:
		return nics
	}
}

func (o Options) own() bool { return filepath.Dir(o.NetNS) == o.Dir }

// Joint is the junction. Its methods are called by one goroutine at a time, but for
// Settle.
type Joint struct {
	*network.Attachment
	vhost  []*os.File // the one of each device, if they have any
	kernel bool       // they have
	late   bool

	mu      sync.Mutex
	settled bool // guarded by mu
}

// Devices are those that a machine to be joined would have, open only as far as it
// takes to compare machines.
func (o Options) Devices() ([]vmm.NIC, error) {
	n := 0
	if o.NetNS != "" {
		var err error
		if n, err = network.Count(o.NetNS); err != nil {
			return nil, fmt.Errorf("network: %w", err)
		}
	}
	return Placeholders(max(n, o.least()), o.Vhost), nil
}

// Placeholders are n devices that are open to nothing.
func Placeholders(n int, vhost bool) []vmm.NIC {
	var out []vmm.NIC
	for i := range n {
		nic := vmm.NIC{MAC: network.DeviceMAC(i).String(), Tap: os.Stdin} // any file
		if vhost {
			nic.VhostNet = os.Stdin
		}
		out = append(out, nic)
	}
	return out
}

// Attach joins the namespace to devices of a machine to be.
func Attach(ctx context.Context, o Options) (*Joint, error) {
	var at *network.Attachment
	var err error
	switch {
	case o.NetNS == "":
		// Devices all the same: it is a machine of the same kind then.
		at, err = network.Idle(o.least())
	case o.own():
		at, err = network.AttachOwn(ctx, o.NetNS, o.least())
	default:
		at, err = network.Attach(ctx, o.NetNS, o.least())
	}
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	j := &Joint{Attachment: at, late: o.Late, kernel: o.Vhost}
	if err := j.RenewVhost(); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, nil
}

// TakeOver joins the namespace to the devices of a machine that runs already. They
// must be as many as o.Devices has.
func TakeOver(ctx context.Context, o Options, d network.Devices) (*Joint, error) {
	var at *network.Attachment
	var err error
	switch {
	case o.NetNS == "":
		at, err = d.Idle()
	case o.Late && o.own():
		// It is found at the machine's process, which is where it is. Nobody has
		// been told of the other.
		at, err = d.Replace(ctx, o.NetNS)
	default:
		at, err = d.Attach(ctx, o.NetNS)
	}
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	return &Joint{Attachment: at, late: o.Late}, nil
}

// RenewVhost gives each device a back end of its own, if they have any: one that a
// machine has had is of no use to another.
func (j *Joint) RenewVhost() error {
	if !j.kernel {
		return nil
	}
	if err := j.closeVhost(); err != nil {
		return err
	}
	for range j.NICs() {
		f, err := os.OpenFile(vhostNet, os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("vhost-net: %w", err)
		}
		j.vhost = append(j.vhost, f)
	}
	return nil
}

func (j *Joint) closeVhost() error {
	var errs []error
	for _, f := range j.vhost {
		errs = append(errs, f.Close())
	}
	j.vhost = nil
	return errors.Join(errs...)
}

// Join makes the devices those of the machine.
func (j *Joint) Join(cfg *vmm.Config) {
	cfg.NetNS, cfg.NICs = nil, nil
	if j.late {
		cfg.NetNS = j.Namespace()
	}
	for i, n := range j.NICs() {
		nic := vmm.NIC{MAC: n.MAC, Tap: n.Tap}
		if len(j.vhost) > 0 {
			nic.VhostNet = j.vhost[i]
		}
		cfg.NICs = append(cfg.NICs, nic)
	}
}

// Close takes the junction apart. It may be called again.
func (j *Joint) Close() error { return errors.Join(j.Attachment.Close(), j.closeVhost()) }

// Resolve lets the guest ask a name server in the namespace, once there is one.
type Resolve func(ctx context.Context, ns *os.File, log *slog.Logger)

// Settle is called before a container starts. Once it passes on what has come into
// the namespace since the machine was made; what changes afterwards is told until
// what own gets is closed.
func (j *Joint) Settle(ctx context.Context, tell network.Tell, resolve Resolve, log *slog.Logger, own func(io.Closer)) error {
	if j.Namespace() == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.settled {
		return nil
	}
	defer timeline.Step(ctx, "settle network")()
	f, err := j.Follow(ctx, func(ctx context.Context, nw *agentv1.Network) error {
		// The server comes with a network that has one, and before its interface.
		resolve(ctx, j.Namespace(), log)
		return tell(ctx, nw)
	}, log)
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	resolve(ctx, j.Namespace(), log)
	j.settled = true
	own(f)
	return nil
}
