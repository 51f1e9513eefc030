package rehearsal

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"golang.org/x/sys/unix"
)

const (
	// program is the path of the program in the container.
	program = "/bin/rehearsal"
	// hosts and resolv are files; the first is mounted on the second.
	hosts, resolv = "/etc/hosts", "/etc/resolv.conf"
	// greeting is what the program says.
	greeting = "hello\n"
)

// Fill makes the empty directory the root of a container: with a program, and with
// the places for all mounts, so that the guest need not be able to write to it.
func Fill(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("fill the root of a rehearsal: %w", err)
	}
	defer func() { _ = root.Close() }()
	for _, d := range []string{"bin", "dev", "etc", "proc", "run", "sys"} {
		if err := root.Mkdir(d, 0o755); err != nil {
			return fmt.Errorf("fill the root of a rehearsal: %w", err)
		}
	}
	for name, file := range map[string]struct {
		data []byte
		mode os.FileMode
	}{
		program: {executable(), 0o755},
		hosts:   {[]byte("127.0.0.1 localhost\n"), 0o644},
		resolv:  {nil, 0o644},
	} {
		if err := root.WriteFile(filepath.Clean(name)[1:], file.data, file.mode); err != nil {
			return fmt.Errorf("fill the root of a rehearsal: %w", err)
		}
	}
	return nil
}

// executable is a program that says hello, reads its input until that ends, and
// ends.
func executable() []byte {
	const (
		base = 0x400000
		head = 64 + 56 // the sizes of what precedes the code
	)
	code := []byte{
		0xb8, 1, 0, 0, 0, // mov eax, SYS_write
		0xbf, 1, 0, 0, 0, // mov edi, 1
		0x48, 0x8d, 0x35, 38, 0, 0, 0, // lea rsi, [rip+38]: the greeting, behind the code
		0xba, byte(len(greeting)), 0, 0, 0, // mov edx, its length
		0x0f, 0x05, // syscall
		0x48, 0x83, 0xec, 64, // sub rsp, 64
		0x31, 0xc0, // again: xor eax, eax: SYS_read
		0x31, 0xff, // xor edi, edi
		0x48, 0x89, 0xe6, // mov rsi, rsp
		0xba, 64, 0, 0, 0, // mov edx, 64
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test eax, eax
		0x7f, 0xee, // jg again
		0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
		0x31, 0xff, // xor edi, edi
		0x0f, 0x05, // syscall
	}
	size := uint64(head + len(code) + len(greeting))
	var b bytes.Buffer
	for _, part := range []any{
		elf.Header64{
			Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
			Entry: base + head, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
		},
		elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: base, Paddr: base,
			Filesz: size, Memsz: size, Align: 0x1000,
		},
		code, []byte(greeting),
	} {
		// All of these have a size, and a buffer takes what it is given.
		_ = binary.Write(&b, binary.LittleEndian, part)
	}
	return b.Bytes()
}

// network is one with addresses on each device, or with nothing but idle devices.
func (s Stage) network(idle bool) *agentv1.Network {
	if idle {
		return &agentv1.Network{Idle: s.Devices}
	}
	n := &agentv1.Network{}
	for i, device := range s.Devices {
		name := fmt.Sprintf("eth%d", i)
		// Networks for documentation.
		n.Interfaces = append(n.Interfaces, &agentv1.Interface{
			Name: name, Mac: fmt.Sprintf("02:00:5e:00:53:%02x", i), Device: device, Mtu: 1500,
			Addresses: []*agentv1.Address{
				{Prefix: fmt.Sprintf("192.0.2.%d/24", i+2), Broadcast: "192.0.2.255"},
				{Prefix: fmt.Sprintf("fe80::%d/64", i+2), Scope: unix.RT_SCOPE_LINK},
			},
		})
		if i > 0 {
			continue
		}
		n.Routes = []*agentv1.Route{
			{
				Destination: "192.0.2.0/24", Hops: []*agentv1.Hop{{Device: name}}, Source: "192.0.2.2",
				Family: unix.AF_INET, Scope: unix.RT_SCOPE_LINK, Protocol: unix.RTPROT_KERNEL,
			},
			{Destination: "0.0.0.0/0", Hops: []*agentv1.Hop{{Gateway: "192.0.2.1", Device: name}}, Family: unix.AF_INET},
			{
				Destination: "fe80::/64", Hops: []*agentv1.Hop{{Device: name}}, Family: unix.AF_INET6,
				Protocol: unix.RTPROT_KERNEL, Priority: 256,
			},
		}
	}
	return n
}

// container is one as Docker asks for it, or a plain one, as ctr does.
func (s Stage) container(plain bool) *specs.Spec {
	caps := command().Capabilities.Bounding
	options := []string{"nosuid", "noexec", "nodev"}
	with := func(more ...string) []string { return append(more, options...) }
	null := []int64{1, 3}
	sp := &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: s.Root}, Hostname: ID, Process: command(),
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: options},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: with("mode=1777", "size=65536k")},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: options},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: with("ro")},
			{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: resolv, Type: "bind", Source: path.Join(s.Root, hosts), Options: []string{"rbind", "rprivate", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/kata/" + ID,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			},
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
				{Access: "rwm"}, {Allow: true, Type: "c", Major: &null[0], Minor: &null[1], Access: "rwm"},
			}},
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	if plain {
		return sp
	}
	limit, shares, one := int64(64<<20), uint64(512), uint(1)
	sp.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	sp.Linux.Resources.CPU = &specs.LinuxCPU{Shares: &shares}
	sp.Linux.Namespaces = append(sp.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	sp.Mounts = append(sp.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: with("ro")})
	sp.Process.Capabilities.Inheritable = caps
	sp.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read", "write", "execve", "exit", "exit_group", "futex"}, Action: specs.ActAllow},
			{Names: []string{"ptrace"}, Action: specs.ActErrno, ErrnoRet: &one},
			{Names: []string{"personality"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Value: 8, Op: specs.OpEqualTo}}},
		},
	}
	return sp
}
