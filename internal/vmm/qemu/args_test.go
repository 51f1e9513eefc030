package qemu

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-efd44b36/kata/internal/vmm"
)

// config is a valid configuration.
func config() vmm.Config {
	return vmm.Config{
		ID: "box", Dir: "/dir", Binary: "/usr/bin/qemu", MachineType: "q35", Accel: vmm.AccelTCG,
		CPUs: 2, MemoryMiB: 512, Kernel: "/k/vmlinux", Initrd: "/k/initrd", KernelParams: "quiet",
		Share: vmm.Share{Tag: "kata", Server: new(os.File)},
		NICs:  []vmm.NIC{{MAC: "02:00:00:00:00:01"}},
	}
}

// files stand for open files; only which is which counts.
func files() backends {
	return backends{agent: new(os.File), qmp: new(os.File), console: new(os.File)}
}

func TestArguments(t *testing.T) {
	common := `-name box
-nodefaults
-no-user-config
-display none
-no-reboot
-S
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
`
	for _, test := range []struct {
		name  string
		adapt func(*vmm.Config, *backends)
		want  string
	}{
		{"q35 with 9p, emulated", func(*vmm.Config, *backends) {}, `-M q35,graphics=off,sata=off,smbus=off,usb=off,vmport=off,hpet=off,i8042=off,memory-backend=ram
-accel tcg,thread=multi,tb-size=128
-cpu max,erms=off
-smp 2
-m 512
-object memory-backend-ram,id=ram,size=512M
-rtc base=utc
-kernel /k/vmlinux
-initrd /k/initrd
-append console=ttyS0 panic=-1 reboot=t quiet
-chardev socket,id=qmp,fd=3
-mon chardev=qmp,mode=control
-chardev socket,id=console,fd=4
-serial chardev:console
-device virtio-serial-pci,id=serial
-chardev socket,id=agent,fd=5
-device virtserialport,bus=serial.0,chardev=agent,name=agent.0
-device virtio-rng-pci
-device virtio-balloon-pci,free-page-reporting=on
-device virtio-scsi-pci,id=scsi
-fsdev proxy,id=share,sock_fd=6
-device virtio-9p-pci,fsdev=share,mount_tag=kata
-device virtio-net-pci,romfile=,mac=02:00:00:00:00:01
`},
		{"microvm with everything", func(c *vmm.Config, b *backends) {
			c.MachineType, c.Accel, c.VsockCID = "microvm", vmm.AccelKVM, 4711
			c.Share = vmm.Share{Tag: "kata", Socket: "/dir/virtiofsd.sock"}
			b.vhostVsock, b.virtiofs = new(os.File), new(os.File)
			c.NICs[0].Tap, c.NICs[0].VhostNet = new(os.File), new(os.File)
			c.NICs = append(c.NICs, vmm.NIC{MAC: "02:00:00:00:00:02", Tap: new(os.File)})
		}, `-M microvm,acpi=off,memory-backend=ram
-global virtio-mmio.force-legacy=false
-accel kvm
-cpu host
-smp 2
-m 512
-object memory-backend-memfd,id=ram,share=on,size=512M
-rtc base=utc
-kernel /k/vmlinux
-initrd /k/initrd
-append console=ttyS0 panic=-1 reboot=t acpi=off pci=off quiet
-chardev socket,id=qmp,fd=3
-mon chardev=qmp,mode=control
-chardev socket,id=console,fd=4
-serial chardev:console
-device virtio-serial-device,id=serial
-chardev socket,id=agent,fd=5
-device virtserialport,bus=serial.0,chardev=agent,name=agent.0
-device virtio-rng-device
-device virtio-balloon-device,free-page-reporting=on
-device virtio-scsi-device,id=scsi
-chardev socket,id=share,fd=6
-device vhost-user-fs-device,chardev=share,queue-size=1024,tag=kata
-netdev tap,id=net0,fd=7,vhost=on,vhostfd=8
-device virtio-net-device,netdev=net0,mac=02:00:00:00:00:01
-netdev tap,id=net1,fd=9
-device virtio-net-device,netdev=net1,mac=02:00:00:00:00:02
-device vhost-vsock-device,guest-cid=4711,vhostfd=10
`},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, b := config(), files()
			test.adapt(&c, &b)
			line := arguments(c, b)
			if diff := cmp.Diff(common+test.want, perLine(line.args)); diff != "" {
				t.Errorf("arguments (-want +got):\n%s", diff)
			}
			if want := strings.Count(test.want, "fd="); len(line.files) != want {
				t.Errorf("%d files go with it, want %d", len(line.files), want)
			}
		})
	}
}

// perLine writes each option with its value on a line.
func perLine(args []string) string {
	var b strings.Builder
	for i, arg := range args {
		switch {
		case i == 0:
		case strings.HasPrefix(arg, "-"):
			b.WriteByte('\n')
		default:
			b.WriteByte(' ')
		}
		b.WriteString(arg)
	}
	return b.String() + "\n"
}

func TestValidate(t *testing.T) {
	if err := validate(config()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*vmm.Config){
		"empty id":           func(c *vmm.Config) { c.ID = "" },
		"id is an option":    func(c *vmm.Config) { c.ID = "-daemonize" },
		"id with options":    func(c *vmm.Config) { c.ID = "a,process=b" },
		"relative binary":    func(c *vmm.Config) { c.Binary = "qemu" },
		"machine type":       func(c *vmm.Config) { c.MachineType = "pc" },
		"accelerator":        func(c *vmm.Config) { c.Accel = vmm.AccelAuto },
		"no cpu":             func(c *vmm.Config) { c.CPUs = 0 },
		"no memory":          func(c *vmm.Config) { c.MemoryMiB = 1 },
		"mac with options":   func(c *vmm.Config) { c.NICs[0].MAC = "02:00:00:00:00:01,rombar=1" },
		"full microvm":       func(c *vmm.Config) { c.MachineType, c.NICs = "microvm", make([]vmm.NIC, 3) },
		"vsock of the host":  func(c *vmm.Config) { c.VsockCID = 2 },
		"vsock of everybody": func(c *vmm.Config) { c.VsockCID = 1<<32 - 1 },
		"share without tag":  func(c *vmm.Config) { c.Share.Tag = "" },
		"long tag":           func(c *vmm.Config) { c.Share.Tag = strings.Repeat("x", 32) },
	} {
		t.Run(name, func(t *testing.T) {
			c := config()
			spoil(&c)
			if err := validate(c); err == nil {
				t.Error("it was accepted")
			}
		})
	}
}
