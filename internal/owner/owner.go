// Package owner makes a sandbox out of its real parts: QEMU, the guest image of
// the configuration, a log in the sandbox's directory. It is what the two
// programs that own sandboxes, kata-proxy and containerd-shim-kata-v2, have in
// common; what they serve is theirs.
package owner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/kvm"
	"github.com/seed-efd44b36/kata/internal/network"
	"github.com/seed-efd44b36/kata/internal/program"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/vmm/qemu"
	"github.com/seed-efd44b36/kata/internal/warm"
)

// LogFile is the owner's log in the sandbox's directory.
const LogFile = "owner.log"

// Options say which sandbox to make.
type Options struct {
	ID     string
	Config config.Config
	// HostMounts is the mount namespace that paths of specs belong to. The
	// sandbox owns it, also when there is an error.
	HostMounts *os.File
	// LogAlso gets a copy of the log; nil for none. It must not block.
	LogAlso io.Writer
	// Start is the time line of the start so far, nil for none.
	Start *timeline.Start
}

// makerPrefix is what the names of machines that become templates begin with.
const makerPrefix = "template-"

// errReserved is that a user's name could be that of a machine of our own.
var errReserved = fmt.Errorf("names that begin with %q or %q are those of machines that kata keeps for itself; choose another one", warm.Prefix, makerPrefix)

// Open makes the sandbox of a user and its log, which becomes the standard error of
// the process as well, so that a crash of it can be found there.
func Open(o Options) (*sandbox.Sandbox, *slog.Logger, error) {
	if IsClone(o.ID) || strings.HasPrefix(o.ID, makerPrefix) {
		return nil, nil, errors.Join(fmt.Errorf("create sandbox %s: %w", o.ID, errReserved), o.HostMounts.Close())
	}
	return open(o)
}

// open is Open for any name.
func open(o Options) (*sandbox.Sandbox, *slog.Logger, error) {
	var out lateWriter
	level := slog.LevelInfo
	if o.Config.Runtime.Debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: level}))
	conf := o.Config
	images, err := builder(conf, log)
	if err != nil {
		return nil, nil, errors.Join(err, o.HostMounts.Close())
	}
	var saved sandbox.Templates
	if conf.Factory.EnableTemplate {
		saved = templates{conf: conf, store: Store(conf), mounts: o.HostMounts}
	}
	sb, err := sandbox.New(sandbox.Options{
		ID: o.ID, Config: conf, Log: log, HostMounts: o.HostMounts, Start: o.Start,
		Image: images.Ensure, Templates: saved,
		Accel: func(ctx context.Context) vmm.Accel { return detectAccel(ctx, conf, log) },
		NewMachine: func(c vmm.Config, l *slog.Logger) (vmm.Machine, error) {
			path, err := qemu.Path(c.Binary)
			if err != nil {
				return nil, err
			}
			c.Binary = path
			return qemu.New(c, l)
		},
	})
	if err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(filepath.Join(sb.Dir(), LogFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open log: %w", err), sb.Close(context.Background()))
	}
	out.w = f
	if o.LogAlso != nil {
		out.w = io.MultiWriter(f, o.LogAlso)
	}
	if err := syscall.Dup3(int(f.Fd()), 2, 0); err != nil {
		log.Warn("standard error is lost", "error", err)
	}
	return sb, log, nil
}

// NewNetNS makes a network namespace in the sandbox's directory, which goes with
// the sandbox.
func NewNetNS(ctx context.Context, sb *sandbox.Sandbox) (path string, err error) {
	defer timeline.Step(ctx, "network namespace")()
	path = filepath.Join(sb.Dir(), "netns")
	if err := sb.Own(cleanup.Record{Kind: cleanup.KindNetns, Name: path}, nil); err != nil {
		return "", err
	}
	return path, network.NewNS(path)
}

// Prepare makes the guest image that the configuration needs, if it is not
// there. That takes tens of megabytes, which an owner would keep.
func Prepare(ctx context.Context, conf config.Config, log *slog.Logger) error {
	images, err := builder(conf, log)
	if err != nil {
		return err
	}
	if _, err := images.Ensure(ctx); err != nil {
		return fmt.Errorf("guest image: %w", err)
	}
	return nil
}

func builder(conf config.Config, log *slog.Logger) (*guestimage.Builder, error) {
	agent, err := program.Find("kata-agent")
	if err != nil {
		return nil, err
	}
	return &guestimage.Builder{
		CacheDir: conf.Runtime.CacheDir, Agent: agent, Log: log,
		Kernel: conf.Hypervisor.Kernel, Modules: conf.Hypervisor.KernelModules,
	}, nil
}

// lateWriter drops what is logged before the log's directory exists.
type lateWriter struct{ w io.Writer }

// Write implements io.Writer.
func (w *lateWriter) Write(b []byte) (int, error) {
	if w.w == nil {
		return len(b), nil
	}
	return w.w.Write(b)
}

func detectAccel(ctx context.Context, conf config.Config, log *slog.Logger) vmm.Accel {
	v := kvm.Probe(ctx, filepath.Join(conf.Runtime.CacheDir, kvm.CacheFile))
	if v.Usable {
		return vmm.AccelKVM
	}
	log.Info("KVM is not used", "reason", v.Reason)
	return vmm.AccelTCG
}
