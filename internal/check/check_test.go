package check

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/seed-efd44b36/kata/internal/config"
)

const (
	intel = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: A CPU\nflags\t\t: fpu lm vmx sse4_1\n\n" +
		"processor\t: 1\nvendor_id\t: GenuineIntel\nmodel name\t: A CPU\nflags\t\t: fpu lm vmx sse4_1\n"
	noVirt = "processor\t: 0\nflags\t\t: fpu lm hypervisor\n"
)

// fine has the files of a host on which everything is in order.
func fine() map[string]string {
	return map[string]string{
		"/proc/cpuinfo":                     intel,
		"/proc/meminfo":                     "MemTotal:  8000000 kB\nMemAvailable:    4000000 kB\n",
		"/proc/filesystems":                 "nodev\tproc\nnodev\toverlay\n",
		"/proc/self/status":                 "Name:\tx\nCapEff:\t000001ffffffffff\n",
		"/proc/self/ns/mnt":                 "",
		"/proc/self/ns/net":                 "",
		"/proc/self/ns/pid":                 "",
		"/proc/sys/kernel/osrelease":        "6.1.0-1-amd64\n",
		"/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
		"/dev/kvm":                          "",
		"/dev/vhost-vsock":                  "",
		"/dev/vhost-net":                    "",
		"/dev/net/tun":                      "",
		"/etc/os-release":                   "NAME=\"Debian GNU/Linux\"\nVERSION_ID='12'\n",
		"/usr/lib/cni/bridge":               "",
		"/usr/lib/cni/host-local":           "",
		"/usr/lib/cni/portmap":              "",
		"/usr/sbin/iptables":                "",
		"/usr/libexec/virtiofsd":            "",
	}
}

// options makes the files in a directory and returns options for that host.
func options(t *testing.T, files map[string]string) Options {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Options{
		Config: config.Default(),
		Root:   root,
		Arch:   "amd64",
		KVM:    func(context.Context) (bool, string) { return true, "" },
		QEMU:   func(context.Context) (string, string, error) { return "/usr/bin/qemu", "7.2", nil },
		Kernel: func(context.Context) (Kernel, error) {
			return Kernel{Path: "/boot/vmlinuz", Version: "6.1", Source: "host /boot", Initrd: "/cache/initrd"}, nil
		},
	}
}

func find(t *testing.T, r Report, name string) Result {
	t.Helper()
	for _, res := range r.Results {
		if res.Name == name {
			return res
		}
	}
	t.Fatalf("no result %s", name)
	return Result{}
}

func TestAllInOrder(t *testing.T) {
	r := Run(t.Context(), options(t, fine()))
	for _, res := range r.Results {
		if res.Status != OK || res.Remedy != "" || res.Detail == "" {
			t.Errorf("%+v", res)
		}
	}
	if !r.Capable || !r.CanCreate || r.Mode != KVM {
		t.Errorf("capable %v, can create %v, mode %s", r.Capable, r.CanCreate, r.Mode)
	}
}

func TestOneThingMissing(t *testing.T) {
	noKVM := func(o *Options) { o.KVM = func(context.Context) (bool, string) { return false, "the vCPU stopped" } }
	tests := []struct {
		name   string
		files  map[string]string // changed files; the value "-" removes one
		change func(*Options)
		result string
		status Status
		detail string // a part of it
	}{
		{"no virtualization", map[string]string{"/proc/cpuinfo": noVirt}, noKVM, "cpu", Warning, "neither Intel VT-x"},
		{"para-virtual KVM", map[string]string{"/proc/cpuinfo": noVirt}, nil, "cpu", OK, "yet /dev/kvm runs guests"},
		{"no virtualization but demanded", map[string]string{"/proc/cpuinfo": noVirt}, func(o *Options) {
			noKVM(o)
			o.Config.Hypervisor.Accel = "kvm"
		}, "cpu", Error, "neither Intel VT-x"},
		{"kvm broken", nil, noKVM, "kvm", Warning, "does not work: the vCPU stopped"},
		{"kvm broken but demanded", nil, func(o *Options) { noKVM(o); o.Config.Hypervisor.Accel = "kvm" }, "kvm", Error, "does not work"},
		{"kvm absent", map[string]string{"/dev/kvm": "-"}, noKVM, "kvm", Warning, "there is no /dev/kvm"},
		{"kvm not wanted", nil, func(o *Options) { o.Config.Hypervisor.Accel = "tcg" }, "kvm", OK, "not used"},
		{"namespace", map[string]string{"/proc/self/ns/pid": "-"}, nil, "namespaces", Error, "pid"},
		{"no cgroups", map[string]string{"/sys/fs/cgroup/cgroup.controllers": "-"}, nil, "cgroups", Warning, "cpu, memory, pids"},
		{"cgroups v1", map[string]string{
			"/sys/fs/cgroup/cgroup.controllers": "-", "/sys/fs/cgroup/cpu/x": "", "/sys/fs/cgroup/memory/x": "", "/sys/fs/cgroup/pids/x": "",
			"/sys/fs/cgroup/unified/cgroup.controllers": "",
		}, nil, "cgroups", OK, "version 1 with a version 2 tree"},
		{"cgroup v2 without pids", map[string]string{"/sys/fs/cgroup/cgroup.controllers": "cpu memory\n"}, nil, "cgroups", Warning, "without the controllers pids"},
		{"overlay as module", map[string]string{"/proc/filesystems": "", "/lib/modules/6.1.0-1-amd64/modules.dep": "kernel/fs/overlayfs/overlay.ko:\n"}, nil, "overlayfs", OK, "module"},
		{"no overlay", map[string]string{"/proc/filesystems": ""}, nil, "overlayfs", Error, "neither"},
		{"not root", map[string]string{"/proc/self/status": "CapEff:\t0000000000000000\n"}, nil, "privileges", Error, "not root"},
		{"no net admin", map[string]string{"/proc/self/status": "CapEff:\t000001ffffffefff\n"}, nil, "privileges", Error, "without CAP_NET_ADMIN"},
		{"no vsock", map[string]string{"/dev/vhost-vsock": "-"}, nil, "vhost-vsock", Warning, "no such file"},
		{"no vsock but demanded", map[string]string{"/dev/vhost-vsock": "-"}, func(o *Options) { o.Config.Hypervisor.Vsock = "on" }, "vhost-vsock", Error, "no such file"},
		{"no vsock wanted", map[string]string{"/dev/vhost-vsock": "-"}, func(o *Options) { o.Config.Hypervisor.Vsock = "off" }, "vhost-vsock", OK, "not used"},
		{"no vhost-net", map[string]string{"/dev/vhost-net": "-"}, nil, "vhost-net", Warning, "no such file"},
		{"no tun", map[string]string{"/dev/net/tun": "-"}, nil, "tun", Warning, "/dev/net/tun: no such file"},
		{"no qemu", nil, func(o *Options) {
			o.QEMU = func(context.Context) (string, string, error) { return "", "", errors.New("qemu is not in PATH") }
		}, "qemu", Error, "qemu is not in PATH"},
		{"no kernel", nil, func(o *Options) {
			o.Kernel = func(context.Context) (Kernel, error) { return Kernel{}, errors.New("no kernel anywhere") }
		}, "kernel", Error, "no kernel anywhere"},
		{"no virtiofsd", map[string]string{"/usr/libexec/virtiofsd": "-"}, nil, "virtiofsd", Warning, "9p"},
		{"no virtiofsd but demanded", map[string]string{"/usr/libexec/virtiofsd": "-"}, func(o *Options) { o.Config.Hypervisor.SharedFS = "virtio-fs" }, "virtiofsd", Error, "/usr/lib/qemu/virtiofsd"},
		{"no portmap", map[string]string{"/usr/lib/cni/portmap": "-"}, nil, "cni", Warning, "no plugin portmap"},
		{"no iptables", map[string]string{"/usr/sbin/iptables": "-"}, nil, "cni", Warning, "iptables"},
		{"little memory", map[string]string{"/proc/meminfo": "MemAvailable: 200000 kB\n"}, nil, "memory", Warning, "195 MiB available"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := fine()
			maps.Copy(files, tt.files)
			maps.DeleteFunc(files, func(_, content string) bool { return content == "-" })
			opts := options(t, files)
			if tt.change != nil {
				tt.change(&opts)
			}
			r := Run(t.Context(), opts)
			got := find(t, r, tt.result)
			if got.Status != tt.status || !strings.Contains(got.Detail, tt.detail) {
				t.Errorf("got %+v, want %s with %q", got, tt.status, tt.detail)
			}
			if (got.Remedy == "") != (got.Status == OK) {
				t.Errorf("status %s with remedy %q", got.Status, got.Remedy)
			}
			if got.Status == Error && r.CanCreate {
				t.Error("can create in spite of an error")
			}
		})
	}
}

func TestVirtualization(t *testing.T) {
	tests := []struct {
		name, arch, cpuinfo string
		device              bool
		want                string // found, or nothing
	}{
		{"Intel", "amd64", intel, false, "Intel VT-x (vmx)"},
		{"AMD", "amd64", "flags : fpu svm\n", false, "AMD-V (svm)"},
		{"PC without", "amd64", noVirt, true, ""},
		{"a flag that only begins so", "amd64", "flags : vmxish\n", false, ""},
		{"Arm in EL2", "arm64", "", true, "Arm virtualization (the kernel started in Hyp mode, EL2)"},
		{"Arm in EL1", "arm64", "", false, ""},
		{"Power, bare", "ppc64le", "platform : PowerNV\n", false, "IBM Power (PowerNV)"},
		{"Power, partition with KVM", "ppc64le", "platform : pSeries\n", true, "IBM Power (pSeries)"},
		{"Power, partition", "ppc64le", "platform : pSeries\n", false, ""},
		{"Z", "s390x", "features : esan3 zarch sie vx\n", false, "IBM Z (sie)"},
		{"Z, guest", "s390x", "features : esan3 zarch vx\n", false, ""},
		{"another", "riscv64", "", true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			found, lacks := virtualization(tt.arch, tt.cpuinfo, tt.device)
			if found != tt.want {
				t.Errorf("found %q, want %q", found, tt.want)
			}
			if (found == "") == (lacks == "") {
				t.Errorf("found %q and lacks %q", found, lacks)
			}
		})
	}
}

func TestWriteText(t *testing.T) {
	r := Report{
		Capable: true, CanCreate: true, Mode: Emulation,
		Results: []Result{
			{"cpu", OK, "fine", ""},
			{"kvm", Warning, "there is none", "get one"},
			{"qemu", OK, "7.2", ""},
		},
	}
	const verdict = `Mode: emulation (guests run on QEMU's TCG: as well separated, but slower)
System is capable of running Kata Containers
System can currently create Kata Containers
`
	for _, tt := range []struct {
		verbose bool
		want    string
	}{
		{false, "warning  kvm          there is none\n                      -> get one\nok       cpu, qemu\n" + verdict},
		{true, "ok       cpu          fine\nwarning  kvm          there is none\n                      -> get one\nok       qemu         7.2\n" + verdict},
	} {
		var out bytes.Buffer
		if err := r.WriteText(&out, tt.verbose); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, out.String()); diff != "" {
			t.Errorf("verbose %v (-want +got):\n%s", tt.verbose, diff)
		}
	}
}

func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		capable, canCreate bool
		want               string
	}{
		{false, false, "System is not capable of running Kata Containers\n"},
		{true, false, "System is capable of running Kata Containers\nSystem cannot currently create Kata Containers\n"},
		{true, true, "System is capable of running Kata Containers\nSystem can currently create Kata Containers\n"},
	} {
		if got := (Report{Capable: tt.capable, CanCreate: tt.canCreate}).Verdict(); got != tt.want {
			t.Errorf("%+v: got %q", tt, got)
		}
	}
}

func TestWriteJSON(t *testing.T) {
	r := Report{Capable: true, Mode: KVM, Results: []Result{{"qemu", Error, "none", "install it"}}}
	var out bytes.Buffer
	if err := r.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	var got Report
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, got); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	if !strings.Contains(out.String(), `"can_create": false`) {
		t.Errorf("keys: %s", out.String())
	}
}

func TestEnvironment(t *testing.T) {
	opts := options(t, fine())
	env := Environment(t.Context(), opts, Binary{Path: "/usr/bin/kata-runtime", OCI: "1.3.0", ConfigFile: "/etc/x.toml"})
	wantHost := EnvHost{
		Kernel: "6.1.0-1-amd64", Architecture: "amd64", VMContainerCapable: true, SupportVSocks: true,
		Distro: EnvDistro{"Debian GNU/Linux", "12"},
		CPU:    EnvCPU{"GenuineIntel", "A CPU", 2},
		Memory: EnvMemory{8000000, 4000000},
	}
	if diff := cmp.Diff(wantHost, env.Host); diff != "" {
		t.Errorf("host (-want +got):\n%s", diff)
	}
	wantHypervisor := EnvHypervisor{
		MachineType: "auto", Version: "7.2", Path: "/usr/bin/qemu", Accelerator: "kvm",
		SharedFS: "auto", VirtioFSDaemon: "/usr/libexec/virtiofsd",
	}
	if diff := cmp.Diff(wantHypervisor, env.Hypervisor); diff != "" {
		t.Errorf("hypervisor (-want +got):\n%s", diff)
	}

	var text, object bytes.Buffer
	if err := errors.Join(env.WriteTOML(&text), env.WriteJSON(&object)); err != nil {
		t.Fatal(err)
	}
	var fromTOML, fromJSON Env
	if err := errors.Join(toml.Unmarshal(text.Bytes(), &fromTOML), json.Unmarshal(object.Bytes(), &fromJSON)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(env, fromTOML); diff != "" {
		t.Errorf("TOML (-want +got):\n%s\n%s", diff, text.String())
	}
	if diff := cmp.Diff(env, fromJSON); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

func TestEnvironmentOfABareHost(t *testing.T) {
	opts := options(t, nil)
	opts.KVM = func(context.Context) (bool, string) { return false, "absent" }
	opts.QEMU = func(context.Context) (string, string, error) { return "", "", errors.New("none") }
	opts.Kernel = func(context.Context) (Kernel, error) { return Kernel{}, errors.New("none") }
	env := Environment(t.Context(), opts, Binary{})
	if env.Host.VMContainerCapable || env.Hypervisor.Path != "" || env.Kernel.Path != "" {
		t.Errorf("%+v", env)
	}
}
