package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func (h *host) privileges() Result {
	const name = "privileges"
	status, err := os.ReadFile(h.path("/proc/self/status"))
	if err != nil {
		return Result{name, Error, err.Error(), "mount /proc"}
	}
	effective, err := strconv.ParseUint(field(string(status), "CapEff"), 16, 64)
	if err != nil {
		return Result{name, Error, "the capabilities of this process are unknown", "mount /proc of this pid namespace"}
	}
	needed := []struct {
		name string
		bit  int
	}{
		{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN},
		{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN},
		{"CAP_CHOWN", unix.CAP_CHOWN},
		{"CAP_DAC_OVERRIDE", unix.CAP_DAC_OVERRIDE},
		{"CAP_MKNOD", unix.CAP_MKNOD},
	}
	var missing []string
	for _, c := range needed {
		if effective&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	switch {
	case len(missing) == 0:
		return Result{name, OK, "all that is needed", ""}
	case len(missing) == len(needed):
		return Result{name, Error, "not root", "run with sudo"}
	}
	return Result{name, Error, "root, but without " + strings.Join(missing, ", "), "grant these capabilities to the container or service that this runs in"}
}

func (h *host) kvm() Result {
	accel := h.Config.Hypervisor.Accel
	switch {
	case accel == "tcg":
		return Result{"kvm", OK, "not used (hypervisor.accel is tcg)", ""}
	case h.kvmUsable:
		return Result{"kvm", OK, "/dev/kvm runs guests", ""}
	case !h.exists("/dev/kvm"):
		return Result{
			"kvm", need(accel == "kvm"), "there is no /dev/kvm",
			"run: modprobe kvm_intel (or kvm_amd); until then guests are emulated, which is slower",
		}
	}
	return Result{
		"kvm", need(accel == "kvm"), "/dev/kvm is there but does not work: " + h.kvmReason,
		"use a host with hardware or nested virtualization; until then guests are emulated, which is slower",
	}
}

func (h *host) vhostVsock() Result {
	return h.optionalDevice("vhost-vsock", "/dev/vhost-vsock", "hypervisor.vsock", h.Config.Hypervisor.Vsock,
		"the link to the guest goes over virtio-serial")
}

func (h *host) vhostNet() Result {
	return h.optionalDevice("vhost-net", "/dev/vhost-net", "hypervisor.vhost_net", h.Config.Hypervisor.VhostNet,
		"packets go through QEMU, which is slower")
}

// optionalDevice checks a device that the configuration uses on "on" and, where
// it exists, on "auto".
func (h *host) optionalDevice(name, device, key, setting, without string) Result {
	if setting == "off" {
		return Result{name, OK, "not used (" + key + " is off)", ""}
	}
	if err := h.open(device); err != nil {
		return Result{name, need(setting == "on"), err.Error(), loadModule(err, strings.ReplaceAll(name, "-", "_"), without)}
	}
	return Result{name, OK, device + " opens", ""}
}

// loadModule is the next step after a device could not be opened: a module is
// not missing where only the right is.
func loadModule(err error, module, without string) string {
	if errors.Is(err, fs.ErrPermission) {
		return "run the check as root: this user may not open the device"
	}
	return "run: modprobe " + module + "; until then " + without
}

func (h *host) tun() Result {
	if err := h.open("/dev/net/tun"); err != nil {
		return Result{"tun", Warning, err.Error(), loadModule(err, "tun", "containers have no network (--network none)")}
	}
	return Result{"tun", OK, "/dev/net/tun opens", ""}
}

// open opens a device and closes it again. A module behind it is loaded by that.
func (h *host) open(device string) error {
	f, err := os.OpenFile(h.path(device), os.O_RDWR|unix.O_NONBLOCK, 0)
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", device, pe.Err)
	}
	if err != nil {
		return err
	}
	return f.Close()
}

func (h *host) qemu(ctx context.Context) Result {
	path, version, err := h.QEMU(ctx)
	if err != nil {
		return Result{"qemu", Error, err.Error(), "run: apt-get install qemu-system-x86, or set hypervisor.path"}
	}
	return Result{"qemu", OK, path + ", version " + version, ""}
}

func (h *host) kernel(ctx context.Context) Result {
	k, err := h.Kernel(ctx)
	if err != nil {
		return Result{"kernel", Error, err.Error(), "set hypervisor.kernel, or run: kata image build"}
	}
	detail := fmt.Sprintf("%s (%s): %s", k.Version, k.Source, k.Path)
	if k.Initrd == "" {
		detail += "; its initrd will be built by the first start"
	}
	return Result{"kernel", OK, detail, ""}
}

// virtiofsDirs are where distributions put virtiofsd, which is on no PATH.
func virtiofsDirs() []string {
	return []string{"/usr/libexec", "/usr/lib/qemu", "/usr/lib/virtiofsd", "/usr/bin", "/usr/local/bin"}
}

// findVirtiofsd returns the path of virtiofsd, or nothing and where it looked.
func (h *host) findVirtiofsd() (path string, looked []string) {
	if configured := h.Config.Hypervisor.VirtioFSDaemon; configured != "" {
		looked = []string{configured}
	} else {
		for _, dir := range virtiofsDirs() {
			looked = append(looked, filepath.Join(dir, "virtiofsd"))
		}
	}
	for _, path := range looked {
		if unix.Access(h.path(path), unix.X_OK) == nil {
			return path, looked
		}
	}
	return "", looked
}

func (h *host) virtiofsd() Result {
	const name = "virtiofsd"
	path, looked := h.findVirtiofsd()
	if path != "" {
		return Result{name, OK, path, ""}
	}
	switch share := h.Config.Hypervisor.SharedFS; share {
	case "auto":
		return Result{
			name, Warning, "not found: the share is 9p, which is slower and needs QEMU 7.2 to 9.1",
			"run: apt-get install virtiofsd (Debian 12 has it in qemu-system-common)",
		}
	case "9p":
		return Result{name, OK, "not found, and not needed (hypervisor.shared_fs is " + share + ")", ""}
	}
	return Result{
		name, Error, "not found: " + strings.Join(looked, ", "),
		`run: apt-get install virtiofsd, or set hypervisor.virtio_fs_daemon, or hypervisor.shared_fs = "9p"`,
	}
}

func (h *host) cni() Result {
	dirs := h.Config.Network.CNIBinDirs
	var missing []string
	for _, plugin := range []string{"bridge", "host-local", "portmap"} {
		if !h.existsInAny(dirs, plugin) {
			missing = append(missing, plugin)
		}
	}
	if len(missing) > 0 {
		return Result{
			"cni", Warning, "no plugin " + strings.Join(missing, ", ") + " in " + strings.Join(dirs, ", "),
			"run: apt-get install containernetworking-plugins; until then `kata run` has no network",
		}
	}
	if !h.existsInAny([]string{"/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"}, "iptables") {
		return Result{"cni", Warning, "the plugins are there, but no iptables, which publishing ports needs", "run: apt-get install iptables"}
	}
	return Result{"cni", OK, "bridge, host-local, portmap", ""}
}

func (h *host) existsInAny(dirs []string, name string) bool {
	for _, dir := range dirs {
		if h.exists(filepath.Join(dir, name)) {
			return true
		}
	}
	return false
}

func (h *host) memory() Result {
	meminfo, err := os.ReadFile(h.path("/proc/meminfo"))
	if err != nil {
		return Result{"memory", Warning, err.Error(), "mount /proc"}
	}
	available := memKiB(string(meminfo), "MemAvailable") >> 10
	wanted := h.Config.Hypervisor.DefaultMemory
	detail := fmt.Sprintf("%d MiB available, %d MiB for a container without limits", available, wanted)
	if available < int64(wanted) {
		return Result{"memory", Warning, detail, "free some, or lower hypervisor.default_memory"}
	}
	return Result{"memory", OK, detail, ""}
}

// memKiB returns a value of /proc/meminfo in KiB, 0 when it is not there.
func memKiB(meminfo, name string) int64 {
	n, _ := strconv.ParseInt(strings.TrimSuffix(field(meminfo, name), " kB"), 10, 64)
	return n
}

// cacheSpace in bytes is what a kernel, its modules and an initrd take.
const cacheSpace = 300 << 20

// directories looks at the file systems that our directories are on or will be.
func (h *host) directories() Result {
	const name = "directories"
	r := h.Config.Runtime
	var problems, remedies []string
	report := func(problem, remedy string) {
		problems, remedies = append(problems, problem), append(remedies, remedy)
	}
	for _, dir := range []string{r.StateDir, r.DataDir, r.CacheDir} {
		var st unix.Statfs_t
		if err := unix.Statfs(h.path(h.existingParent(dir)), &st); err != nil {
			report(fmt.Sprintf("%s: %v", dir, err), "make it accessible")
			continue
		}
		if st.Flags&unix.ST_RDONLY != 0 {
			report(dir+" is on a read-only file system", "choose another directory in section runtime")
		}
		free := int64(st.Bavail) * st.Bsize
		if dir == r.CacheDir && free < cacheSpace && !h.exists(dir+"/kernel") {
			report(fmt.Sprintf("%s has %d MiB free, a guest image takes %d", dir, free>>20, cacheSpace>>20), "free some, or set runtime.cache_dir")
		}
	}
	if len(problems) > 0 {
		return Result{name, Error, strings.Join(problems, "; "), strings.Join(remedies, "; ")}
	}
	return Result{name, OK, r.StateDir + ", " + r.DataDir + ", " + r.CacheDir, ""}
}

// existingParent returns dir or the nearest directory above it that exists.
func (h *host) existingParent(dir string) string {
	for dir != "/" && !h.exists(dir) {
		dir = filepath.Dir(dir)
	}
	return dir
}
