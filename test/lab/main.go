// Command lab runs a command, or without one the end-to-end tests, on a host
// that this one is not: with working KVM, vhost-vsock, vhost-net and cgroup v2.
// That host is a virtual machine of QEMU's emulator, which emulates AMD's SVM
// too. It sees this host's file system and changes nothing of it. docs/lab.md
// has the whole story.
//
//	go run ./test/lab [-v] [-memory MiB] [-cpus N] [-timeout D] [command [arg...]]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/tail"
	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// suites are the packages whose integration tests run when no command is given.
var suites = []struct{ dir, flags string }{
	{"internal/vmm/qemu", ""},
	// One after the other: half a minute of both processors is what a start
	// takes. What is skipped are ten starts at once, a GiB of output, which
	// takes ten minutes, a test that tells the kernels of host and guest
	// apart, which are the same here, and 20,000 files, in the five minutes of
	// which the guest's kernel crashes or the machine resets: see docs/lab.md.
	{"test/e2e", "-test.parallel=1 -test.skip='^Test(TenAtOnce|LargeOutput|OwnKernel|ManyFiles)$'"},
}

// slow are the settings for tests on a machine as slow as this one.
const slow = "boot_timeout = 600\ncreate_timeout = 600"

// modules are what makes the machine a host for virtual machines. What the
// kernel asks for by itself (firewall, traffic control, file systems) need not
// be here.
var modules = []string{"kvm-amd", "vhost_vsock", "vhost_net", "tun", "virtio_net"}

// lab is one run.
type lab struct {
	verbose     bool
	memory      int // MiB
	cpus        int
	dir         string // of this run, seen by the machine as well
	initProgram string
	image       guestimage.Image
}

// job is what the machine's init reads; see there.
type job struct {
	Args, Env    []string
	Dir, Modules string
	Kernel       string
	Load         []string
}

func main() {
	var l lab
	flag.BoolVar(&l.verbose, "v", false, "print the console of the machine")
	flag.IntVar(&l.memory, "memory", 4096, "memory of the machine in MiB")
	flag.IntVar(&l.cpus, "cpus", 2, "virtual CPUs of the machine")
	timeout := flag.Duration("timeout", time.Hour, "end the machine after this time")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, *timeout, fmt.Errorf("not done after %v", *timeout))
	defer cancel()
	code, err := l.run(ctx, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		code = 1
	}
	os.Exit(code)
}

// run runs the command in the machine and returns its exit status.
func (l *lab) run(ctx context.Context, command []string) (code int, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return 0, err
	}
	cache = filepath.Join(cache, "kata-test")
	if err := os.MkdirAll(filepath.Join(cache, "lab"), 0o755); err != nil {
		return 0, err
	}
	if l.dir, err = os.MkdirTemp(filepath.Join(cache, "lab"), "run-"); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, cleanup.RemoveTree(l.dir)) }()

	// Beside the runs, since the image is found again by its path and state.
	l.initProgram = filepath.Join(cache, "lab", "init")
	if err := goTool(ctx, "build", "-trimpath", "-buildvcs=false", "-o", l.initProgram, "./test/lab/init"); err != nil {
		return 0, fmt.Errorf("%w; run it in the project's directory", err)
	}
	builder := guestimage.Builder{
		CacheDir: filepath.Join(cache, "guestimage"), Agent: l.initProgram,
		Log: slog.New(slog.DiscardHandler), Progress: say,
	}
	if l.image, err = builder.Ensure(ctx); err != nil {
		return 0, err
	}
	if len(command) == 0 {
		if command, err = l.tests(ctx); err != nil {
			return 0, err
		}
	}
	if err := l.prepare(ctx, command); err != nil {
		return 0, err
	}
	return l.machine(ctx)
}

func say(line string) { fmt.Fprintln(os.Stderr, "lab:", line) }

func goTool(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w", args[0], err)
	}
	return nil
}

// tests compiles the tests here, where that is fast, and returns the command
// that runs them.
func (l *lab) tests(ctx context.Context) ([]string, error) {
	bin, err := filepath.Abs(os.Getenv("KATA_BIN"))
	if err != nil {
		return nil, err
	}
	if os.Getenv("KATA_BIN") == "" {
		bin = filepath.Join(bin, "bin")
	}
	if _, err := os.Stat(filepath.Join(bin, "kata-runtime")); err != nil {
		return nil, fmt.Errorf("%w; run `make build`", err)
	}
	var script strings.Builder
	fmt.Fprintf(&script, "export KATA_BIN=%s %s=%s\nstatus=0\n", quote(bin), harness.EnvConfig, quote(slow))
	script.WriteString("echo '# kata-runtime check'\n\"$KATA_BIN\"/kata-runtime check || status=$?\n")
	script.WriteString("\"$KATA_BIN\"/kata image build || status=$?\n")
	for _, s := range suites {
		program := filepath.Join(l.dir, strings.ReplaceAll(s.dir, "/", "-")+".test")
		if err := goTool(ctx, "test", "-c", "-tags", "integration", "-o", program, "./"+s.dir); err != nil {
			return nil, err
		}
		fmt.Fprintf(&script, "echo '# %[1]s'\n(cd %[1]s && %[2]s -test.v -test.timeout=0 %[3]s) || status=$?\n", s.dir, quote(program), s.flags)
	}
	return []string{"sh", "-c", script.String() + "exit $status"}, nil
}

// quote makes s one word for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// prepare writes what the machine's init reads: the job, and the kernel's
// modules as modprobe wants them.
func (l *lab) prepare(ctx context.Context, command []string) error {
	k := l.image.Kernel
	if k.ModulesDir == "" {
		return fmt.Errorf("the kernel %s has no modules: the lab needs a distribution's", k.VMLinux)
	}
	tree := filepath.Join(l.dir, "lib/modules", k.Version)
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	if err := os.Symlink(filepath.Join(k.ModulesDir, "kernel"), filepath.Join(tree, "kernel")); err != nil {
		return err
	}
	for _, name := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		b, err := os.ReadFile(filepath.Join(k.ModulesDir, name))
		if err != nil {
			continue // a package may lack it, and depmod can do without
		}
		if err := os.WriteFile(filepath.Join(tree, name), b, 0o644); err != nil {
			return err
		}
	}
	if out, err := exec.CommandContext(ctx, "depmod", "-b", l.dir, k.Version).CombinedOutput(); err != nil {
		return fmt.Errorf("depmod: %w: %s", err, out)
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	b, err := json.Marshal(job{
		Args: command, Env: os.Environ(), Dir: dir, Modules: tree, Kernel: k.Version, Load: modules,
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.dir, "job.json"), b, 0o600)
}

// machine runs the machine to its end.
func (l *lab) machine(ctx context.Context) (code int, err error) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return 0, fmt.Errorf("%w; run `make setup`", err)
	}
	args := []string{
		"-machine", "q35", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max",
		"-smp", strconv.Itoa(l.cpus), "-m", strconv.Itoa(l.memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", l.image.Kernel.VMLinux, "-initrd", l.image.Initrd,
		"-append", guestimage.KernelParams(l.image.Kernel, true) + " lab.run=" + l.dir,
		"-fsdev", "local,id=root,security_model=none,readonly=on,multidevs=remap,path=/",
		"-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
	}
	cmd := exec.CommandContext(ctx, qemu)
	console := tail.New(16 << 10)
	var result strings.Builder
	var consoleOut io.Writer = console
	if l.verbose {
		consoleOut = io.MultiWriter(console, os.Stderr)
	}
	var copies sync.WaitGroup
	defer copies.Wait()
	for _, out := range []struct {
		name string
		to   io.Writer
	}{{"console", consoleOut}, {"out", os.Stdout}, {"err", os.Stderr}, {"result", &result}} {
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		defer w.Close()
		copies.Go(func() {
			defer r.Close()
			_, _ = io.Copy(out.to, r)
		})
		cmd.ExtraFiles = append(cmd.ExtraFiles, w)
		args = append(args, "-chardev", fmt.Sprintf("file,id=%s,append=on,path=/dev/fd/%d", out.name, 2+len(cmd.ExtraFiles)))
		if out.name == "console" {
			args = append(args, "-serial", "chardev:console")
		} else {
			args = append(args, "-device", fmt.Sprintf("virtserialport,chardev=%s,name=lab.%s", out.name, out.name))
		}
	}
	cmd.Args = append([]string{qemu}, args...)
	complaints := tail.New(4 << 10)
	cmd.Stderr = complaints
	runtime.LockOSThread() // whose end is what sends the signal
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	err = cmd.Run()
	for _, w := range cmd.ExtraFiles {
		_ = w.Close()
	}
	copies.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return 0, fmt.Errorf("the machine was stopped: %w", cause)
	}
	code, convErr := strconv.Atoi(strings.TrimSpace(result.String()))
	if err == nil && convErr != nil {
		err = errors.New("the machine ended without a result")
	}
	if err != nil {
		return 0, fmt.Errorf("%w\nQEMU: %s\nconsole: %s", err, complaints.Bytes(), console.Bytes())
	}
	return code, nil
}
