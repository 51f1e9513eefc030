package proxy

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	ttrpclog "github.com/containerd/log"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/kvm"
	"github.com/seed-efd44b36/kata/internal/program"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/vmm/qemu"
	"golang.org/x/sys/unix"
)

// LogFile is kata-proxy's log in the sandbox's directory.
const LogFile = "proxy.log"

// Main is the program kata-proxy. It is started by Spawn only and returns its
// exit status.
func Main(args []string) int {
	fs := flag.NewFlagSet("kata-proxy", flag.ContinueOnError)
	id := fs.String("id", "", "id of the sandbox")
	path := fs.String("config", "", "path of the configuration file")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	// The ttrpc package logs every message that it did not expect, and a guest
	// can send any number of them: it must not fill the log, and with it the
	// host's memory.
	if err := ttrpclog.SetLevel("panic"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ready := os.NewFile(readyFD, "ready")
	owner := os.NewFile(ownerFD, "owner")
	mounts := os.NewFile(mountsFD, "mounts")
	if _, err := ready.Stat(); *id == "" || err != nil {
		fmt.Fprintln(os.Stderr, "kata-proxy is started by kata and kata-runtime; it is of no use by hand")
		return 2
	}
	unix.Umask(0o022) // the caller's may be anything
	answer := func(text string) {
		_, _ = ready.WriteString(text)
		_ = ready.Close()
	}
	// SIGTERM (an operator, a shutdown of the host) ends the sandbox in order.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	for _, fd := range []uintptr{readyFD, ownerFD, mountsFD} {
		syscall.CloseOnExec(int(fd))
	}

	sb, conf, log, err := open(*id, *path, mounts)
	if err != nil {
		answer(err.Error())
		return 1
	}
	err = Serve(ctx, Options{
		Sandbox: sb, Log: log, Owner: owner, Network: setupNetwork(networks(conf)), Ready: func() { answer("ok") },
	})
	if err != nil {
		log.Error("sandbox did not end cleanly; `kata gc` removes what is left", "error", err)
		return 1
	}
	return 0
}

// open makes the sandbox and the log in its directory.
func open(id, configPath string, mounts *os.File) (*sandbox.Sandbox, config.Config, *slog.Logger, error) {
	var conf config.Config
	loaded, err := config.Load(configPath)
	if err != nil {
		return nil, conf, nil, err
	}
	conf = loaded.Config
	var out lateWriter
	level := slog.LevelInfo
	if conf.Runtime.Debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: level}))
	agent, err := program.Find("kata-agent")
	if err != nil {
		return nil, conf, nil, err
	}
	images := &guestimage.Builder{
		CacheDir: conf.Runtime.CacheDir, Agent: agent, Log: log,
		Kernel: conf.Hypervisor.Kernel, Modules: conf.Hypervisor.KernelModules,
	}
	sb, err := sandbox.New(sandbox.Options{
		ID: id, Config: conf, Log: log, HostMounts: mounts,
		Image: images.Ensure,
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
		return nil, conf, nil, err
	}
	f, err := os.OpenFile(filepath.Join(sb.Dir(), LogFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, conf, nil, errors.Join(fmt.Errorf("open log: %w", err), sb.Close(context.Background()))
	}
	out.f = f
	// A crash of kata-proxy itself is to be found in the log as well.
	if err := syscall.Dup3(int(f.Fd()), 2, 0); err != nil {
		log.Warn("standard error is lost", "error", err)
	}
	return sb, conf, log, nil
}

// lateWriter drops what is logged before the log's directory exists.
type lateWriter struct{ f *os.File }

// Write implements io.Writer.
func (w *lateWriter) Write(b []byte) (int, error) {
	if w.f == nil {
		return len(b), nil
	}
	return w.f.Write(b)
}

func detectAccel(ctx context.Context, conf config.Config, log *slog.Logger) vmm.Accel {
	v := kvm.Probe(ctx, filepath.Join(conf.Runtime.CacheDir, kvm.CacheFile))
	if v.Usable {
		return vmm.AccelKVM
	}
	log.Info("KVM is not used", "reason", v.Reason)
	return vmm.AccelTCG
}
