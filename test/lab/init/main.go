// Command init is the first process of the lab's machine (see test/lab). It
// makes the file system of the real host its own, with all changes going to
// memory, loads what a host of virtual machines has, runs one command, and
// powers the machine off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/internal/agent/boot"
	"github.com/seed-efd44b36/kata/internal/agent/module"
	"golang.org/x/sys/unix"
)

// drain is how long output of processes that outlive the command is awaited.
const drain = 2 * time.Second

// job is what the lab writes for us to do, as JSON.
type job struct {
	Args []string
	Env  []string
	Dir  string
	// Modules is a tree as modprobe wants it, without the leading
	// "/lib/modules".
	Modules string
	// Kernel is the kernel's release.
	Kernel string
	// Load names the modules to load.
	Load []string
}

func main() {
	code, err := run()
	if err != nil {
		// The console is all that is sure to be there.
		fmt.Fprintln(os.Stderr, "lab:", err)
	} else if err := report(code); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() (code int, err error) {
	if err := mount("proc", "/proc", "proc", ""); err != nil {
		return 0, err
	}
	line, err := boot.ReadCommandLine()
	if err != nil {
		return 0, err
	}
	modules, err := module.Open("/etc/kata/modules")
	if err != nil {
		return 0, err
	}
	if err := errors.Join(modules.LoadPhase(module.PhaseBoot), modules.Load("overlay")); err != nil {
		return 0, err
	}
	if err := enterHost(); err != nil {
		return 0, err
	}
	b, err := os.ReadFile(filepath.Join(line.Get("lab.run"), "job.json"))
	if err != nil {
		return 0, fmt.Errorf("read job: %w", err)
	}
	var j job
	if err := json.Unmarshal(b, &j); err != nil {
		return 0, fmt.Errorf("read job: %w", err)
	}
	if err := populate(j); err != nil {
		return 0, err
	}
	return j.run()
}

// enterHost makes the host's file system the root: read-only by 9p, with an
// overlay in memory.
func enterHost() error {
	for _, m := range []struct{ source, target, fstype, data string }{
		// loose: nobody changes files while we look at them, or so we assume.
		{"root", "/host", "9p", "trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro"},
		{"lab", "/rw", "tmpfs", "size=75%"},
	} {
		if err := mount(m.source, m.target, m.fstype, m.data); err != nil {
			return err
		}
	}
	for _, d := range []string{"/rw/upper", "/rw/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := mount("lab", "/new", "overlay", "lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work"); err != nil {
		return err
	}
	// The kernel's threads share our root, so modprobe is found when the
	// kernel asks for a module.
	if err := unix.Chdir("/new"); err != nil {
		return fmt.Errorf("enter host: %w", err)
	}
	if err := unix.Mount("/new", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return nil
}

// populate mounts and loads what a booted host has.
func populate(j job) error {
	for _, m := range []struct {
		target, fstype, data string
	}{
		{"/proc", "proc", ""},
		{"/sys", "sysfs", ""},
		{"/dev", "devtmpfs", "mode=0755"},
		{"/dev/pts", "devpts", "mode=0620,gid=5,ptmxmode=0666"},
		{"/dev/shm", "tmpfs", "mode=1777"},
		{"/dev/mqueue", "mqueue", ""},
		{"/sys/fs/cgroup", "cgroup2", "nsdelegate"},
		{"/run", "tmpfs", "mode=0755"},
		// Not on the overlay, since it cannot be the upper part of another.
		{"/var/tmp", "tmpfs", "mode=1777"},
		{"/var/lib/kata", "tmpfs", "mode=0755"},
	} {
		if err := mount(m.fstype, m.target, m.fstype, m.data); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2",
		filepath.Join("/lib/modules", j.Kernel): j.Modules,
	} {
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if err := unix.Sethostname([]byte("lab")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return err
	}
	for _, name := range j.Load {
		if out, err := exec.Command("modprobe", name).CombinedOutput(); err != nil { //nolint:noctx // it ends with the machine
			return fmt.Errorf("load module %s: %w: %s", name, err, strings.TrimSpace(string(out)))
		}
	}
	// The modes that udev gives them: a VMM need not be root for their sake.
	for _, device := range []string{"/dev/kvm", "/dev/vhost-net", "/dev/vhost-vsock", "/dev/net/tun"} {
		if err := os.Chmod(device, 0o666); err != nil {
			return err
		}
	}
	// As systemd sets it; the kernel's own hard limit is 4096.
	const openFiles = 1 << 20
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1024, Max: openFiles}); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	// An outside that leads nowhere: hosts have an address that is not loopback's.
	for _, command := range []string{
		"ip link set lo up",
		"ip link add outside type veth peer name nowhere",
		"ip address add 192.0.2.1/24 dev outside",
		"ip link set outside up",
		"ip link set nowhere up",
		"ip route add default via 192.0.2.254",
	} {
		words := strings.Fields(command)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil { //nolint:noctx // as above
			return fmt.Errorf("%s: %w: %s", command, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

func mount(source, target, fstype, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, fstype, 0, data); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// run runs the command with its output on the lab's ports, and every other
// process's end is taken care of meanwhile: that of orphans too, as the first
// process must.
func (j job) run() (code int, err error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	files := []*os.File{null}
	var finish []func()
	for _, name := range []string{"lab.out", "lab.err"} {
		port, err := openPort(name)
		if err != nil {
			return 0, err
		}
		// A port can be open once only: the command gets a pipe, which its
		// children may open again.
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		copied := make(chan struct{})
		go func() { // ends with the pipe, or at its deadline; finish waits
			defer close(copied)
			_, _ = io.Copy(port, r)
		}()
		files = append(files, w)
		finish = append(finish, func() {
			_ = w.Close()
			_ = r.SetReadDeadline(time.Now().Add(drain))
			<-copied
		})
	}
	defer func() {
		for _, f := range finish {
			f()
		}
	}()
	path, err := exec.LookPath(j.Args[0])
	if err != nil {
		_, _ = fmt.Fprintln(files[2], "lab:", err)
		return 127, nil
	}
	p, err := os.StartProcess(path, j.Args, &os.ProcAttr{Dir: j.Dir, Env: j.Env, Files: files})
	if err != nil {
		_, _ = fmt.Fprintln(files[2], "lab:", err)
		return 126, nil
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case pid != p.Pid:
		case ws.Signaled():
			return 128 + int(ws.Signal()), nil
		default:
			return ws.ExitStatus(), nil
		}
	}
}

// report tells the lab how the command ended.
func report(code int) error {
	port, err := openPort("lab.result")
	if err != nil {
		return err
	}
	_, err = port.WriteString(strconv.Itoa(code) + "\n")
	return errors.Join(err, port.Close())
}

// openPort opens the virtio-serial port of that name.
func openPort(name string) (*os.File, error) {
	const class = "/sys/class/virtio-ports"
	ports, err := os.ReadDir(class)
	if err != nil {
		return nil, err
	}
	for _, p := range ports {
		b, err := os.ReadFile(filepath.Join(class, p.Name(), "name"))
		if err == nil && strings.TrimSpace(string(b)) == name {
			return os.OpenFile(filepath.Join("/dev", p.Name()), os.O_WRONLY, 0)
		}
	}
	return nil, fmt.Errorf("the machine has no port %s", name)
}
