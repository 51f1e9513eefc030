package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/seed-efd44b36/kata/internal/vmm"
)

// kernelParams are what the driver relies on: the console is the first serial
// port, and a guest that panics or reboots ends QEMU (with -no-reboot).
const kernelParams = "console=ttyS0 panic=-1 reboot=t"

// agentPort is the name of the virtio-serial port in the guest.
const agentPort = "agent.0"

// maxTag is how long the mount tag of a share may be.
const maxTag = 31

// firstFD is the number that the first file passed to QEMU has there.
const firstFD = 3

// backends are the open files that QEMU's devices use. Files that are nil
// stand for devices, or parts of devices, that this machine does not have.
type backends struct {
	agent, qmp, console *os.File
	vhostVsock          *os.File
	virtiofs            *os.File
}

// commandLine collects QEMU's arguments and the files that go with them.
type commandLine struct {
	args  []string
	files []*os.File
}

func (l *commandLine) add(args ...string) { l.args = append(l.args, args...) }

// fd adds a file and returns its number in the child.
func (l *commandLine) fd(f *os.File) string {
	l.files = append(l.files, f)
	return strconv.Itoa(firstFD + len(l.files) - 1)
}

// arguments returns the command line of the fixed machine: all its devices
// exist from the start, in this order, whatever the sandbox makes of them.
func arguments(c vmm.Config, b backends) commandLine {
	var l commandLine
	bus, params := "-pci", kernelParams
	if c.MachineType == "microvm" {
		// It has neither, which the kernel would call an error.
		bus, params = "-device", kernelParams+" acpi=off pci=off"
	}

	// The id is an argument of its own, so that the process can be found by it.
	l.add("-name", c.ID)
	l.add("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S")
	l.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	l.add("-M", machine(c))
	if c.MachineType == "microvm" {
		// virtiofsd speaks to modern devices only.
		l.add("-global", "virtio-mmio.force-legacy=false")
	}
	l.add("-accel", accel(c), "-cpu", cpu(c), "-smp", strconv.Itoa(c.CPUs))
	l.add("-m", strconv.Itoa(c.MemoryMiB), "-object", memory(c))
	l.add("-rtc", "base=utc")
	if c.State != nil {
		l.add("-incoming", "defer")
	}
	l.add("-kernel", c.Kernel, "-initrd", c.Initrd)
	l.add("-append", strings.TrimSpace(params+" "+c.KernelParams))

	l.add("-chardev", "socket,id=qmp,fd="+l.fd(b.qmp), "-mon", "chardev=qmp,mode=control")
	l.add("-chardev", "socket,id=console,fd="+l.fd(b.console), "-serial", "chardev:console")

	l.add("-device", "virtio-serial"+bus+",id=serial")
	l.add("-chardev", "socket,id=agent,fd="+l.fd(b.agent))
	l.add("-device", "virtserialport,bus=serial.0,chardev=agent,name="+agentPort)

	l.add("-device", "virtio-rng"+bus)
	l.add("-device", "virtio-balloon"+bus+balloonOptions(c))
	l.add("-device", "virtio-scsi"+bus+",id=scsi")
	l.share(c.Share, bus, b.virtiofs)
	for i, n := range c.NICs {
		l.nic(n, fmt.Sprintf("net%d", i), bus)
	}
	if c.VsockCID != 0 {
		l.add("-device", fmt.Sprintf("vhost-vsock%s,guest-cid=%d,vhostfd=%s", bus, c.VsockCID, l.fd(b.vhostVsock)))
	}
	return l
}

// balloonOptions: what the guest reports as free goes back to the host. Not from
// a file's private copy: QEMU would punch holes into the file instead.
func balloonOptions(c vmm.Config) string {
	if c.Memory != nil {
		return ""
	}
	return ",free-page-reporting=on"
}

func (l *commandLine) share(s vmm.Share, bus string, virtiofs *os.File) {
	switch {
	case virtiofs != nil:
		l.add("-chardev", "socket,id=share,fd="+l.fd(virtiofs))
		l.add("-device", "vhost-user-fs"+bus+",chardev=share,queue-size=1024,tag="+escape(s.Tag))
	case s.Server != nil:
		// QEMU 9.2 and newer have no such driver; see explain.
		l.add("-fsdev", "proxy,id=share,sock_fd="+l.fd(s.Server))
		l.add("-device", "virtio-9p"+bus+",fsdev=share,mount_tag="+escape(s.Tag))
	}
}

func (l *commandLine) nic(n vmm.NIC, id, bus string) {
	device := "virtio-net" + bus
	if bus == "-pci" {
		device += ",romfile=" // no network boot
	}
	if n.Tap != nil {
		netdev := "tap,id=" + id + ",fd=" + l.fd(n.Tap)
		if n.VhostNet != nil {
			netdev += ",vhost=on,vhostfd=" + l.fd(n.VhostNet)
		}
		l.add("-netdev", netdev)
		device += ",netdev=" + id
	}
	if n.MAC != "" {
		device += ",mac=" + n.MAC
	}
	l.add("-device", device)
}

func machine(c vmm.Config) string {
	if c.MachineType == "microvm" {
		return "microvm,acpi=off,memory-backend=ram"
	}
	// Without the parts of a PC that nobody uses: fewer devices for the guest
	// to find, and less of QEMU within its reach.
	return "q35,graphics=off,sata=off,smbus=off,usb=off,vmport=off,hpet=off,i8042=off,memory-backend=ram"
}

func accel(c vmm.Config) string {
	if c.Accel == vmm.AccelKVM {
		return "kvm"
	}
	// The cache of translated code is memory of the host and is never given
	// back, so it is bounded. Debian's kernel fills 38 MiB until its init
	// runs; with 32 MiB that takes 8% longer, with 16 MiB 17%.
	return "tcg,thread=multi,tb-size=128"
}

func cpu(c vmm.Config) string {
	if c.Accel == vmm.AccelKVM {
		return "host"
	}
	// TCG runs "rep movsb" one byte at a time; without the flag the guest's
	// copies use words. Half of the cost of carrying output was that.
	return "max,erms=off"
}

// memoryPath is where QEMU asks for the memory that it has a copy of. Nothing is
// there: it is lent the open file.
const memoryPath = "/memory"

func memory(c vmm.Config) string {
	switch {
	case c.State != nil:
		return fmt.Sprintf("memory-backend-file,id=ram,share=off,mem-path=%s,size=%dM", memoryPath, c.MemoryMiB)
	case c.Memory != nil:
		return fmt.Sprintf("memory-backend-file,id=ram,share=on,mem-path=%s,size=%dM", escape(c.Memory.Name()), c.MemoryMiB)
	case c.Share.Socket != "":
		return fmt.Sprintf("memory-backend-memfd,id=ram,share=on,size=%dM", c.MemoryMiB)
	}
	return fmt.Sprintf("memory-backend-ram,id=ram,size=%dM", c.MemoryMiB)
}

// escape makes s one value in QEMU's lists of options.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// validate finds what would make a command line that means something else.
func validate(c vmm.Config) error {
	switch {
	case !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`).MatchString(c.ID):
		return fmt.Errorf("sandbox id %q has other characters than letters, digits, '_', '.' and '-'", c.ID)
	case !filepath.IsAbs(c.Binary):
		return fmt.Errorf("path of qemu %q is not absolute", c.Binary)
	case c.MachineType != "q35" && c.MachineType != "microvm":
		return fmt.Errorf("machine type %q is not q35 or microvm", c.MachineType)
	case c.Accel != vmm.AccelKVM && c.Accel != vmm.AccelTCG:
		return fmt.Errorf("accelerator %q is not kvm or tcg", c.Accel)
	case c.CPUs < 1:
		return fmt.Errorf("%d virtual CPUs: at least 1 is needed", c.CPUs)
	case c.MemoryMiB < 64:
		return fmt.Errorf("%d MiB of memory: at least 64 are needed", c.MemoryMiB)
	case c.MachineType == "microvm" && len(c.NICs) > vmm.MicrovmNICs:
		return fmt.Errorf("%d network devices: a microvm has room for %d; set hypervisor.machine_type to \"q35\" or \"auto\"", len(c.NICs), vmm.MicrovmNICs)
	case c.Share != (vmm.Share{}) && (c.Share.Tag == "" || len(c.Share.Tag) > maxTag):
		return fmt.Errorf("mount tag %q of the share does not have 1 to %d characters", c.Share.Tag, maxTag)
	case c.Memory != nil && c.Share.Socket != "":
		return errors.New("a machine with virtio-fs cannot be saved or restored")
	case c.State != nil && c.Memory == nil:
		return errors.New("a saved state without its memory")
	case c.VsockCID == 1 || c.VsockCID == 2 || c.VsockCID == 1<<32-1:
		return fmt.Errorf("vsock context id %d is reserved", c.VsockCID)
	}
	mac := regexp.MustCompile(`^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$`)
	for _, n := range c.NICs {
		if n.MAC != "" && !mac.MatchString(n.MAC) {
			return fmt.Errorf("MAC address %q is not six pairs of hexadecimal digits", n.MAC)
		}
	}
	return nil
}
