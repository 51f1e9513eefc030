package spec

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// base is a spec such as `runc spec` writes.
func base() *specs.Spec {
	return &specs.Spec{
		Version:  "1.2.0",
		Process:  &specs.Process{Args: []string{"sh"}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: "box",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "size=65536k"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: "pid"}, {Type: "network"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "cgroup"},
		}},
	}
}

func options() Options {
	return Options{
		ID: "c1", SandboxID: "s1", Bundle: "/bundle",
		OnTmpfs: func(path string) bool { return strings.HasPrefix(path, "/run/") || strings.HasPrefix(path, "/dev/") },
	}
}

// TestContainerSeesItsOwnCgroup: engines on a host with version 1 ask for no
// namespace.
func TestContainerSeesItsOwnCgroup(t *testing.T) {
	for _, asked := range []bool{false, true} {
		s := base()
		if !asked {
			s.Linux.Namespaces = s.Linux.Namespaces[:5]
		}
		plan, err := Translate(s, options())
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, ns := range plan.Guest.Linux.Namespaces {
			if ns.Type == specs.CgroupNamespace {
				n++
			}
		}
		if n != 1 {
			t.Errorf("asked for: %v; %d cgroup namespaces, want 1", asked, n)
		}
	}
}

func TestTranslate(t *testing.T) {
	s := base()
	s.Root.Readonly = true
	s.Annotations = map[string]string{"a": "b"}
	s.Process.ApparmorProfile = "docker-default"
	s.Linux.CgroupsPath = "/docker/abc"
	s.Linux.Namespaces[1].Path = "/run/netns/x"
	s.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-1", Mems: "0"}}
	s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/a"}}, Poststop: []specs.Hook{{Path: "/bin/b"}}}
	s.Mounts = append(s.Mounts,
		specs.Mount{Destination: "/data", Type: "bind", Source: "/srv", Options: []string{"rbind", "ro", "rprivate"}},
		specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/run/engine/abc/shm", Options: []string{"rbind"}},
		specs.Mount{Destination: "/masked", Type: "none", Source: "/dev/null", Options: []string{"bind"}},
		specs.Mount{Destination: "/etc/hosts", Source: "hosts", Options: []string{"bind"}},
	)
	before, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := Translate(s, options())
	if err != nil {
		t.Fatal(err)
	}
	after, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(before), string(after)); diff != "" {
		t.Errorf("the original spec was changed:\n%s", diff)
	}
	guest := base()
	guest.Root = &specs.Root{Path: "/run/kata/shared/c1/rootfs", Readonly: true}
	guest.Linux.Namespaces = append(guest.Linux.Namespaces[:1:1], guest.Linux.Namespaces[2:]...)
	guest.Linux.CgroupsPath = "/kata/c1"
	guest.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{}}
	guest.Mounts = append(guest.Mounts,
		specs.Mount{Destination: "/data", Type: "bind", Source: "", Options: []string{"rbind", "ro", "rprivate"}},
		specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind"}},
		specs.Mount{Destination: "/masked", Type: "bind", Source: "/dev/null", Options: []string{"bind"}},
		specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: "", Options: []string{"bind"}},
	)
	want := &Plan{
		Guest: guest, Rootfs: "/bundle/rootfs", RootReadonly: true,
		Binds: []Bind{
			{Mount: 2, Source: "/srv", Destination: "/data", ReadOnly: true, Recursive: true},
			{Mount: 5, Source: "/bundle/hosts", Destination: "/etc/hosts"},
		},
		Join: map[string]string{}, NetNS: "/run/netns/x", CPUs: "0-1", MemoryNodes: "0",
		Hooks:    Hooks{BeforeCreate: s.Hooks.CreateRuntime, AfterStop: s.Hooks.Poststop},
		Warnings: []string{`process.apparmorProfile "docker-default" is not applied: the guest has no AppArmor policy`},
	}
	if diff := cmp.Diff(want, plan); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
}

// TestBindOptions: the last option wins, as with mount(8).
func TestBindOptions(t *testing.T) {
	for _, tt := range []struct {
		options []string
		want    Bind
	}{
		{[]string{"bind", "ro"}, Bind{ReadOnly: true}},
		{[]string{"rbind", "rprivate", "ro"}, Bind{Recursive: true, ReadOnly: true}},
		{[]string{"rbind", "rro"}, Bind{Recursive: true, ReadOnly: true, ReadOnlyBelow: true}},
		{[]string{"rbind", "rro", "rw"}, Bind{Recursive: true, ReadOnlyBelow: true}},
		{[]string{"rbind", "ro", "rrw"}, Bind{Recursive: true}},
		{[]string{"rbind", "rslave"}, Bind{Recursive: true, Slave: true}},
		{[]string{"rbind", "rslave", "rprivate"}, Bind{Recursive: true}},
	} {
		s := base()
		s.Mounts = []specs.Mount{{Destination: "/d", Type: "bind", Source: "/s", Options: tt.options}}
		plan, err := Translate(s, options())
		if err != nil {
			t.Errorf("%v: %v", tt.options, err)
			continue
		}
		tt.want.Source, tt.want.Destination = "/s", "/d"
		if diff := cmp.Diff([]Bind{tt.want}, plan.Binds); diff != "" {
			t.Errorf("%v (-want +got):\n%s", tt.options, diff)
		}
	}
}

func TestLocate(t *testing.T) {
	s := base()
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/d", Type: "bind", Source: "/s", Options: []string{"rbind", "rprivate", "ro"}})
	for _, split := range []bool{false, true} {
		plan, err := Translate(s, options())
		if err != nil {
			t.Fatal(err)
		}
		plan.Locate(plan.Binds[0], "somewhere/7", split)
		want := specs.Mount{Destination: "/d", Type: "bind", Source: GuestShared + "/somewhere/7", Options: []string{"rbind", "rprivate", "ro"}}
		if split {
			want.Options = want.Options[:2]
		}
		if diff := cmp.Diff(want, plan.Guest.Mounts[len(s.Mounts)-1]); diff != "" {
			t.Errorf("split %v (-want +got):\n%s", split, diff)
		}
	}
}

// TestShm: the memory that an engine gives becomes the guest's, a directory
// that is only called so does not.
func TestShm(t *testing.T) {
	tmpfs := options().OnTmpfs
	for _, tt := range []struct {
		source, destination string
		onTmpfs             func(string) bool
		want                string
	}{
		{"/run/engine/abc/shm", "/dev/shm/", tmpfs, GuestShm},
		{"/run/engine/abc/shm", "/dev/shm", nil, ""},
		{"/run/engine/abc/memory", "/dev/shm", tmpfs, ""},
		{"/run/engine/abc/shm", "/shm", tmpfs, ""},
		{"/data/shm", "/dev/shm", tmpfs, ""},
	} {
		s, o := base(), options()
		s.Mounts = []specs.Mount{{Destination: tt.destination, Type: "bind", Source: tt.source}}
		o.OnTmpfs = tt.onTmpfs
		plan, err := Translate(s, o)
		if err != nil {
			t.Fatal(err)
		}
		if got := plan.Guest.Mounts[0].Source; got != tt.want {
			t.Errorf("%s on %s: the source is %s, want %s", tt.source, tt.destination, got, tt.want)
		}
	}
}

func TestJoinTheSandbox(t *testing.T) {
	s := base()
	for i, ns := range s.Linux.Namespaces {
		if ns.Type == "ipc" || ns.Type == "uts" {
			s.Linux.Namespaces[i].Path = "/proc/123/ns/" + string(ns.Type)
		}
	}
	o := options()
	if _, err := Translate(s, o); !errors.Is(err, ErrUnsupported) {
		t.Errorf("namespaces of others in the first container: got %v, want ErrUnsupported", err)
	}
	o.Members = []string{"pause", "other"}
	plan, err := Translate(s, o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"ipc": "pause", "uts": "pause"}, plan.Join); diff != "" {
		t.Errorf("joined (-want +got):\n%s", diff)
	}
	for _, ns := range plan.Guest.Linux.Namespaces {
		if ns.Path != "" {
			t.Errorf("a path of the host is left for the guest: %v", ns)
		}
	}
}

// TestJoinThePod: where the sandbox is the pod, a container has its namespaces and
// its shared memory, without one that has made them.
func TestJoinThePod(t *testing.T) {
	s := base()
	for i, ns := range s.Linux.Namespaces {
		if ns.Type == "ipc" || ns.Type == "uts" || ns.Type == "pid" {
			s.Linux.Namespaces[i].Path = "/proc/123/ns/" + string(ns.Type)
		}
	}
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"size=65536k"}})
	o := options()
	o.Pod = true
	plan, err := Translate(s, o)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"ipc": "", "uts": "", "pid": ""}, plan.Join); diff != "" {
		t.Errorf("joined (-want +got):\n%s", diff)
	}
	for _, ns := range plan.Guest.Linux.Namespaces {
		if ns.Type == "ipc" || ns.Type == "uts" || ns.Type == "pid" {
			t.Errorf("the guest is to make a namespace: %v", ns)
		}
	}
	if m := plan.Guest.Mounts[len(plan.Guest.Mounts)-1]; m.Source != GuestShm || m.Type != "bind" {
		t.Errorf("shared memory: %v", m)
	}
}

func TestRefused(t *testing.T) {
	drop := func(s *specs.Spec, typ specs.LinuxNamespaceType) {
		var kept []specs.LinuxNamespace
		for _, ns := range s.Linux.Namespaces {
			if ns.Type != typ {
				kept = append(kept, ns)
			}
		}
		s.Linux.Namespaces = kept
	}
	mount := func(m specs.Mount) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Mounts = append(s.Mounts, m) }
	}
	for name, tc := range map[string]struct {
		change func(*specs.Spec)
		kind   error
		field  string
	}{
		"no process":         {func(s *specs.Spec) { s.Process = nil }, ErrInvalid, "process:"},
		"no command":         {func(s *specs.Spec) { s.Process.Args = nil }, ErrInvalid, "process.args:"},
		"relative cwd":       {func(s *specs.Spec) { s.Process.Cwd = "tmp" }, ErrInvalid, "process.cwd:"},
		"NUL in environment": {func(s *specs.Spec) { s.Process.Env = []string{"A=\x00"} }, ErrInvalid, "process:"},
		"odd rlimit":         {func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, ErrInvalid, "process.rlimits:"},
		"no root":            {func(s *specs.Spec) { s.Root = nil }, ErrInvalid, "root.path:"},
		"no linux":           {func(s *specs.Spec) { s.Linux = nil }, ErrInvalid, "linux:"},
		"version 2":          {func(s *specs.Spec) { s.Version = "2.0.0" }, ErrUnsupported, "ociVersion:"},
		"host network":       {func(s *specs.Spec) { drop(s, "network") }, ErrUnsupported, "linux.namespaces:"},
		"host pid":           {func(s *specs.Spec) { drop(s, "pid") }, ErrUnsupported, "linux.namespaces:"},
		"host ipc":           {func(s *specs.Spec) { drop(s, "ipc") }, ErrUnsupported, "linux.namespaces:"},
		"user namespace": {func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
		}, ErrUnsupported, "linux.namespaces:"},
		"host disk": {func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sda", Type: "b", Major: 8}}
		}, ErrUnsupported, "linux.devices:"},
		"disk as null": {func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/null", Type: "b", Major: 1, Minor: 3}}
		}, ErrUnsupported, "linux.devices:"},
		"hook in the container": {func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/x"}}}
		}, ErrUnsupported, "hooks.createContainer:"},
		"relative hook": {func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{Poststart: []specs.Hook{{Path: "x"}}}
		}, ErrInvalid, "hooks.poststart:"},
		"block file system":    {mount(specs.Mount{Destination: "/x", Type: "ext4", Source: "/dev/sda"}), ErrUnsupported, "mounts[2] (/x):"},
		"shared bind":          {mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/x", Options: []string{"rshared"}}), ErrUnsupported, "mounts[2] (/x):"},
		"bind of nothing":      {mount(specs.Mount{Destination: "/x", Type: "bind"}), ErrInvalid, "mounts[2] (/x):"},
		"mount of no type":     {mount(specs.Mount{Destination: "/x"}), ErrInvalid, "mounts[2] (/x):"},
		"relative destination": {mount(specs.Mount{Destination: "x", Type: "tmpfs"}), ErrInvalid, "mounts[2] (x):"},
		"idmapped bind":        {mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/x", Options: []string{"idmap"}}), ErrUnsupported, "mounts[2] (/x):"},
		"cgroup procs": {func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Unified: map[string]string{"../cgroup.procs": "1"}}
		}, ErrInvalid, "linux.resources.unified:"},
	} {
		t.Run(name, func(t *testing.T) {
			s := base()
			tc.change(s)
			_, err := Translate(s, options())
			if !errors.Is(err, tc.kind) {
				t.Fatalf("got %v, want %v", err, tc.kind)
			}
			if !strings.Contains(err.Error(), "\n"+tc.field) {
				t.Errorf("the error does not name %s\n%v", tc.field, err)
			}
		})
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	s := base()
	s.Process.Cwd = ""
	s.Linux.IntelRdt = &specs.LinuxIntelRdt{}
	s.VM = &specs.VM{}
	_, err := Translate(s, options())
	if err == nil {
		t.Fatal("no error")
	}
	for _, field := range []string{"process.cwd", "linux.intelRdt", "vm"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%s is not told in\n%v", field, err)
		}
	}
}

func TestPrivilegedDevicesAreToldShortly(t *testing.T) {
	s := base()
	for range 300 {
		s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/sd" + strings.Repeat("x", 90), Type: "b", Major: 8})
	}
	s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
	for i := range s.Linux.Devices {
		s.Linux.Devices[i].Path += strconv.Itoa(i)
	}
	_, err := Translate(s, options())
	if err == nil || len(err.Error()) > 1000 || !strings.Contains(err.Error(), "privileged") {
		t.Errorf("got %v", err)
	}
}

func TestVirtualDevicesPass(t *testing.T) {
	s := base()
	s.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
		{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200},
		{Path: "/dev/initctl", Type: "p"},
	}
	if _, err := Translate(s, options()); err != nil {
		t.Error(err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no config.json: got %v, want fs.ErrNotExist", err)
	}
	write(`{"ociVersion":"1.0.2","future":{"x":1},"process":{"args":["a"]}}`)
	s, err := Load(dir)
	if err != nil || s.Process.Args[0] != "a" {
		t.Errorf("got %v, %v", s, err)
	}
	for _, text := range []string{"", "null", "[]", "{} {}", `{"process":{"args":"a"}}`} {
		write(text)
		if _, err := Load(dir); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", text, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "config.json")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "config.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); !errors.Is(err, ErrInvalid) {
		t.Errorf("a named pipe: got %v, want ErrInvalid", err)
	}
}

func TestGuestProcess(t *testing.T) {
	p := &specs.Process{Args: []string{"sh"}, Cwd: "/", ApparmorProfile: "a", SelinuxLabel: "b"}
	if err := CheckProcess(p); err != nil {
		t.Error(err)
	}
	got, warnings := GuestProcess(p)
	if got.ApparmorProfile != "" || got.SelinuxLabel != "" || len(warnings) != 2 || p.ApparmorProfile != "a" {
		t.Errorf("got %v with warnings %q, original %v", got, warnings, p)
	}
	for _, p := range []*specs.Process{nil, {}, {Args: []string{"a"}, Cwd: "x"}} {
		if err := CheckProcess(p); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: got %v, want ErrInvalid", p, err)
		}
	}
}

// FuzzLoad feeds config.json files: whatever they say, neither decoding nor
// translating may panic, and what the guest gets must have no path of the host
// for a bind mount and no namespace path.
func FuzzLoad(f *testing.F) {
	good, err := json.Marshal(base())
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{
		string(good), "{}", "null", `{"linux":{"namespaces":[{"type":"pid","path":"/x"}]}}`,
		`{"mounts":[{"destination":"/x","options":["bind"],"source":"../../etc"}],"root":{"path":""}}`,
		`{"process":{"args":[""],"rlimits":[{"type":"RLIMIT_AS","hard":1,"soft":2}]}}`,
		`{"linux":{"resources":{"unified":{"a.b/../c":"1"},"cpu":{},"blockIO":{"leafWeight":1}}}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decode(b)
		if err != nil {
			return
		}
		plan, err := Translate(s, options())
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("error of no kind: %v", err)
			}
			return
		}
		if !strings.HasPrefix(plan.Guest.Root.Path, GuestShared+"/c1/") {
			t.Errorf("root of the guest: %q", plan.Guest.Root.Path)
		}
		for _, m := range plan.Guest.Mounts {
			if m.Type == "bind" && m.Source != "" && m.Source != GuestShm && !guestDevice(m.Source) {
				t.Errorf("bind mount of the guest from %q", m.Source)
			}
		}
		for i, bind := range plan.Binds {
			if plan.Guest.Mounts[bind.Mount].Type != "bind" || plan.Guest.Mounts[bind.Mount].Source != "" || !filepath.IsAbs(bind.Source) {
				t.Errorf("bind %d: %v", i, bind)
			}
		}
		for _, ns := range plan.Guest.Linux.Namespaces {
			if ns.Path != "" {
				t.Errorf("namespace path for the guest: %v", ns)
			}
		}
		for _, d := range plan.Guest.Linux.Devices {
			if d.Type == "b" && (d.Major != 0 || d.Minor != 0) {
				t.Errorf("block device of the guest with a number of the host: %v", d)
			}
		}
	})
}
