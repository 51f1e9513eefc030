package owner

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/program"
	"github.com/seed-efd44b36/kata/internal/resources"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/joint"
	"github.com/seed-efd44b36/kata/internal/sandbox/machine"
	"github.com/seed-efd44b36/kata/internal/template"
	"github.com/seed-efd44b36/kata/internal/thread"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/vmm/qemu"
	"golang.org/x/sys/unix"
)

// templateBytes is what templates may take of the disk.
const templateBytes = 4 << 30

// makerNice is the priority of who makes a template or a warm clone unasked, and of
// its machine.
const makerNice = 10

// TemplateFlag is the flag of kata-proxy that makes a template of the Request on
// its standard input.
const TemplateFlag = "template"

// Request says which template to make.
type Request struct {
	Config config.Config
	// Size of the machine, rounded up to the next class; 0: the configuration's
	// default.
	MemoryMiB, CPUs int
	// NICs is the number of its network devices.
	NICs int
	// Detached: nobody waits for it. Key is then what a failure is remembered under.
	Detached bool
	Key      string
}

// Store is where the configuration's templates are.
func Store(conf config.Config) template.Store {
	return template.Store{Dir: filepath.Join(conf.Runtime.CacheDir, "templates"), MaxBytes: templateBytes}
}

// templates are those of a configuration, for its sandboxes.
type templates struct {
	conf   config.Config
	store  template.Store
	mounts *os.File // the host's, open as long as the sandbox is
}

// key is that of the machine's template.
func key(c vmm.Config) (string, error) {
	path, err := qemu.Path(c.Binary)
	if err != nil {
		return "", err
	}
	c.Binary = path
	kind, err := qemu.Kind(c)
	if err != nil {
		return "", err
	}
	return template.Key(kind), nil
}

// Find implements sandbox.Templates.
func (t templates) Find(c vmm.Config) (*template.Template, error) {
	k, err := key(c)
	if err != nil {
		return nil, err
	}
	return t.store.Find(k)
}

// Want implements sandbox.Templates: another process, which does not end with the
// sandbox, makes the template.
func (t templates) Want(ctx context.Context, c vmm.Config) error {
	k, err := key(c)
	if err != nil || !t.store.Wanted(k) {
		return err
	}
	if n := t.conf.Factory.VMCacheNumber; n > 0 && t.store.Has(k) && (memoryIsLow() || len(kind(Request{Config: t.conf, Key: k})) >= n) {
		return nil
	}
	_, err = AskForTemplate(ctx, Request{
		Config: t.conf, MemoryMiB: c.MemoryMiB, CPUs: c.CPUs, NICs: len(c.NICs), Detached: true, Key: k,
	}, t.mounts)
	return err
}

// Reject implements sandbox.Templates.
func (t templates) Reject(key string, why error) { t.store.Reject(key, why) }

// AskForTemplate has a template made by a process of its own, and returns its key
// once it is there, or "" if the request is detached.
// mounts is the mount namespace of the host, nil for our own: the maker's is a copy
// that follows it.
func AskForTemplate(ctx context.Context, r Request, mounts *os.File) (key string, err error) {
	path, err := program.Find("kata-proxy")
	if err != nil {
		return "", err
	}
	request, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("encode request: %w", err)
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, path, makerArgs(r)...)
	cmd.Stdin, cmd.Stdout, cmd.Dir, cmd.Env = bytes.NewReader(request), &said, "/", program.Environment()
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	// What it mounts for the machine is seen by it alone and ends with it; see
	// followMounts.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNS}
	err = thread.InMounts(mounts, cmd.Run)
	text := strings.TrimSpace(said.String())
	if err != nil && text != "" {
		err = errors.New(text)
	}
	if err != nil {
		return "", fmt.Errorf("kata-proxy: %w", err)
	}
	return text, nil
}

// makerArgs are the arguments of who makes what is requested. The last one tells people
// whose it is.
func makerArgs(r Request) []string { return []string{"--" + TemplateFlag, r.Config.Runtime.StateDir} }

// MakerMain is kata-proxy as the maker of a template, of the request on its
// standard input. It prints the key, or what went wrong.
func MakerMain() int {
	key, err := answer(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stdout, err)
		return 1
	}
	fmt.Fprintln(os.Stdout, key)
	return 0
}

// followMounts lets our mount namespace follow that of the host, and not the other way
// round: what is unmounted there must not stay mounted here, for we may live longer
// than any sandbox.
func followMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mounts of its own: %w", err)
	}
	return nil
}

func answer(in io.Reader) (key string, err error) {
	if err := followMounts(); err != nil {
		return "", err
	}
	var r Request
	if err := json.NewDecoder(in).Decode(&r); err != nil {
		return "", fmt.Errorf("request: %w", err)
	}
	if r.Detached {
		r.Detached = false
		// Of those of the sandbox, with which it would end.
		if err := resources.LeaveAll(); err != nil {
			return "", err
		}
		return "", detach(r)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	wanted := r.Key
	size, err := r.make(ctx, slog.New(slog.DiscardHandler))
	switch {
	case err != nil && wanted != "":
		Store(r.Config).Failed(wanted, err)
		return "", err
	case err != nil || r.Config.Factory.VMCacheNumber == 0:
		return r.Key, err
	case wanted == "":
		// Whoever asked waits for the template only.
		return r.Key, refill(ctx, r)
	}
	err = keep(ctx, r, sandbox.Warm{Size: size, NICs: r.NICs})
	if err != nil {
		// Lest each start that misses a clone try it anew.
		Store(r.Config).Failed(wanted, fmt.Errorf("warm clone: %w", err))
	}
	return r.Key, err
}

// detach starts a process for the request and does not wait for it: this one's
// parent has no use for one more child.
func detach(r Request) error {
	request, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	fd, err := unix.MemfdCreate("request", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	in := os.NewFile(uintptr(fd), "request")
	defer in.Close()
	if _, err := in.WriteAt(request, 0); err != nil {
		return fmt.Errorf("write request: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, makerArgs(r)...)
	cmd.Stdin, cmd.Dir, cmd.Env = in, "/", program.Environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// Those who start something now come first. The priority is a thread's, and
	// inherited from the one that forks.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, makerNice); err != nil {
		return fmt.Errorf("lower the priority: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release()
}

// make makes a template, if it is not there. It sets the key, and returns the size of
// the machine.
func (r *Request) make(ctx context.Context, log *slog.Logger) (size resources.VM, err error) {
	conf := r.Config
	images, err := builder(conf, log)
	if err != nil {
		return size, err
	}
	img, err := images.Ensure(ctx)
	if err != nil {
		return size, fmt.Errorf("guest image: %w", err)
	}
	accel := vmm.Accel(conf.Hypervisor.Accel)
	if accel == vmm.AccelAuto {
		accel = detectAccel(ctx, conf, log)
	}
	size = machine.Class(resources.VM{
		MemoryMiB: cmp.Or(r.MemoryMiB, conf.Hypervisor.DefaultMemory), CPUs: cmp.Or(r.CPUs, conf.Hypervisor.DefaultVCPUs),
	})
	cfg := machine.Config(conf.Hypervisor, img, accel, size)
	cfg.MachineType = machine.Type(conf.Hypervisor.MachineType, img.Kernel, r.NICs)
	cfg.NICs = joint.Placeholders(r.NICs, machine.Use(conf.Hypervisor.VhostNet, "/dev/vhost-net"))
	k, err := key(cfg)
	if err != nil {
		return size, err
	}
	r.Key = k
	info := template.Info{
		Key: k, MemoryMiB: size.MemoryMiB, CPUs: size.CPUs, NICs: r.NICs,
		Machine: cfg.MachineType + "," + string(accel), Kernel: img.Kernel.Version,
	}
	return size, Store(conf).Make(ctx, info, func(ctx context.Context, memory, state *os.File) error {
		return save(ctx, conf, sandbox.Save{
			Warm: sandbox.Warm{Size: size, NICs: r.NICs}, Memory: memory, State: state,
			Check: func(c vmm.Config) error {
				if actual, err := key(c); err != nil || actual != k {
					return errors.Join(err, errors.New("the machine is of another kind than it was to be"))
				}
				return nil
			},
		})
	})
}

// save boots a sandbox and saves its machine.
func save(ctx context.Context, conf config.Config, o sandbox.Save) (err error) {
	mounts, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	sb, _, err := open(Options{ID: makerPrefix + rand.Text()[:12], Config: conf, HostMounts: mounts})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sb.Close(context.WithoutCancel(ctx))) }()
	return sb.Boot(ctx, sandbox.BootOptions{Save: &o})
}
