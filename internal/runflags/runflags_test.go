package runflags

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/pflag"
)

// device is the last device of a plan, with the rule for it.
func device(p *Plan) string {
	devices, rules := p.Spec.Linux.Devices, p.Spec.Linux.Resources.Devices
	d, r := devices[len(devices)-1], rules[len(rules)-1]
	if !r.Allow || r.Type != "b" || *r.Major != d.Major || *r.Minor != d.Minor {
		return "not allowed"
	}
	return fmt.Sprintf("%s %d:%d %s", d.Path, d.Major, d.Minor, r.Access)
}

// fakeFiles is a root file system as a map.
type fakeFiles map[string]string

func (f fakeFiles) ReadFile(name string, limit int64) ([]byte, error) {
	data, ok := f[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return []byte(data), nil
}

var users = fakeFiles{
	"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34::/var/www:/bin/sh\nbroken\n",
	"/etc/group":  "root:x:0:\nweb:x:34:\nadm:x:4:www\n1000:x:7:\n",
}

func parse(t testing.TB, args ...string) (*Flags, []string) {
	t.Helper()
	f, rest, err := tryParse(args...)
	if err != nil {
		t.Fatal(err)
	}
	return f, rest
}

func tryParse(args ...string) (*Flags, []string, error) {
	var f Flags
	set := pflag.NewFlagSet("run", pflag.ContinueOnError)
	set.SetOutput(nil)
	f.Register(set)
	err := set.Parse(args)
	return &f, set.Args(), err
}

func input(t testing.TB) Input {
	t.Helper()
	return Input{
		ID:    "0123456789abcdef0123456789abcdef",
		Image: imagespec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin", "A=image"}, WorkingDir: "/w/."},
		Files: users, Root: "/bundle/rootfs", Dir: "/var/c", VolumeDir: "/var/volumes",
		LookupEnv: func(name string) (string, bool) { return "from outside", name == "OUTER" },
		BlockDevice: func(path string) (specs.LinuxDevice, error) {
			if path != "/dev/sdb" {
				return specs.LinuxDevice{}, fs.ErrNotExist
			}
			return specs.LinuxDevice{Type: "b", Major: 8, Minor: 16}, nil
		},
	}
}

func plan(t *testing.T, args ...string) *Plan {
	t.Helper()
	f, rest := parse(t, append(args, "image")...)
	in := input(t)
	in.Args = rest[1:]
	p, err := f.Plan(in)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDefaults(t *testing.T) {
	p := plan(t)
	s := p.Spec
	if diff := cmp.Diff([]string{"sh"}, s.Process.Args); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"PATH=/bin", "HOSTNAME=0123456789ab", "HOME=/root", "A=image"}, s.Process.Env); diff != "" {
		t.Error(diff)
	}
	if s.Process.Cwd != "/w" || s.Hostname != "0123456789ab" || s.Root.Path != "/bundle/rootfs" || s.Root.Readonly {
		t.Errorf("cwd %q, hostname %q, root %+v", s.Process.Cwd, s.Hostname, s.Root)
	}
	if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActErrno || len(s.Linux.Seccomp.Syscalls) < 10 {
		t.Errorf("seccomp = %+v", s.Linux.Seccomp)
	}
	if !cmp.Equal(s.Process.Capabilities.Effective, defaultCapabilities) || s.Process.Capabilities.Inheritable != nil {
		t.Errorf("capabilities = %+v", s.Process.Capabilities)
	}
	if s.Linux.Resources.Memory != nil || s.Linux.Resources.CPU != nil || p.ShmBytes != 64<<20 || p.StopSignal != 15 || p.Network != "kata" {
		t.Errorf("plan = %+v", p)
	}
	var targets []string
	for _, m := range s.Mounts {
		targets = append(targets, m.Destination)
	}
	want := []string{"/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}
	if diff := cmp.Diff(want, targets); diff != "" {
		t.Error(diff)
	}
}

func TestFlagsEndAtTheImage(t *testing.T) {
	_, rest := parse(t, "-it", "--rm", "image", "ls", "-la", "--rm")
	if diff := cmp.Diff([]string{"image", "ls", "-la", "--rm"}, rest); diff != "" {
		t.Error(diff)
	}
}

func TestCommand(t *testing.T) {
	image := imagespec.ImageConfig{Entrypoint: []string{"/entry", "-x"}, Cmd: []string{"default"}}
	for _, tt := range []struct {
		name  string
		image imagespec.ImageConfig
		flags []string
		args  []string
		want  []string
	}{
		{"image alone", image, nil, nil, []string{"/entry", "-x", "default"}},
		{"arguments", image, nil, []string{"a", "b"}, []string{"/entry", "-x", "a", "b"}},
		{"entry point", image, []string{"--entrypoint", "/bin/sh"}, []string{"-c"}, []string{"/bin/sh", "-c"}},
		{"entry point drops the command", image, []string{"--entrypoint", "/bin/sh"}, nil, []string{"/bin/sh"}},
		{"no entry point", image, []string{"--entrypoint", ""}, []string{"ls"}, []string{"ls"}},
		{"nothing", imagespec.ImageConfig{}, nil, nil, nil},
		{"nothing left", image, []string{"--entrypoint", ""}, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, _ := parse(t, tt.flags...)
			got, err := f.command(Input{Image: tt.image, Args: tt.args})
			if diff := cmp.Diff(tt.want, got); diff != "" || (err == nil) != (tt.want != nil) {
				t.Errorf("command: %v, %s", err, diff)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("# comment\n\n  F=file # no comment\nA=file\r\nOUTER\nMISSING\nQ=\"quoted\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := plan(t, "-t", "--env-file", file, "-e", "A=flag", "-e", "OUTER2=x", "-e", "HOSTNAME", "-e", "EMPTY=", "-e", "LIST=a,b")
	want := []string{
		"PATH=/bin", "HOME=/root", "A=flag", "TERM=xterm", "F=file # no comment", "OUTER=from outside",
		"Q=\"quoted\"", "OUTER2=x", "EMPTY=", "LIST=a,b",
	}
	if diff := cmp.Diff(want, p.Spec.Process.Env); diff != "" {
		t.Error(diff)
	}
	if !p.Spec.Process.Terminal {
		t.Error("terminal = false")
	}
	t.Setenv("PASSED", "on")
	got, err := MergeEnv([]string{"A=1", "B=2", "nonsense", "TERM=vt100"}, []string{"PASSED", "A", "B=3", "A=4"}, true)
	if diff := cmp.Diff([]string{"A=4", "B=3", "TERM=vt100", "PASSED=on"}, got); err != nil || diff != "" {
		t.Errorf("merge: %v, %s", err, diff)
	}
}

func TestResolveUser(t *testing.T) {
	for _, tt := range []struct {
		spec   string
		groups []string
		want   specs.User
		home   string
		fails  string
	}{
		{spec: "", want: specs.User{}, home: "/root"},
		{spec: "www", want: specs.User{UID: 33, GID: 34, AdditionalGids: []uint32{4}}, home: "/var/www"},
		{spec: "33", want: specs.User{UID: 33, GID: 34, AdditionalGids: []uint32{4}}, home: "/var/www"},
		{spec: "www:root", want: specs.User{UID: 33, GID: 0}, home: "/var/www"},
		{spec: "1234:5678", want: specs.User{UID: 1234, GID: 5678}, home: "/"},
		{spec: "1234", want: specs.User{UID: 1234}, home: "/"},
		{spec: "www", groups: []string{"web", "99", "adm"}, want: specs.User{UID: 33, GID: 34, AdditionalGids: []uint32{4, 34, 99}}, home: "/var/www"},
		{spec: "nobody", fails: "--user \"nobody\""},
		{spec: "www:none", fails: "--user"},
		{spec: ":web", fails: "--user"},
		{spec: "-1", fails: "--user"},
		{spec: "4294967296", fails: "--user"},
		{spec: "www", groups: []string{"none"}, fails: "--group-add"},
	} {
		got, err := ResolveUser(users, tt.spec, tt.groups)
		if tt.fails != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("resolve %q %q: %v, want an error with %q", tt.spec, tt.groups, err, tt.fails)
			}
			continue
		}
		home, herr := Home(users, tt.spec)
		slices.Sort(got.AdditionalGids)
		if diff := cmp.Diff(tt.want, got); err != nil || herr != nil || diff != "" || home != tt.home {
			t.Errorf("resolve %q %q: home %q, %v, %v, %s", tt.spec, tt.groups, home, err, herr, diff)
		}
	}
	// Without any files, numbers work and names do not.
	if got, err := ResolveUser(fakeFiles{}, "7:8", nil); err != nil || got.UID != 7 || got.GID != 8 {
		t.Errorf("resolve in an empty image: %+v, %v", got, err)
	}
}

func TestPlanFlags(t *testing.T) {
	profile := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	rlimit := func(p *Plan, name string) specs.POSIXRlimit {
		for _, r := range p.Spec.Process.Rlimits {
			if r.Type == name {
				return r
			}
		}
		return specs.POSIXRlimit{}
	}
	for _, tt := range []struct {
		args []string
		ok   func(p *Plan) bool
	}{
		{[]string{"-m", "256m"}, func(p *Plan) bool { return *p.Spec.Linux.Resources.Memory.Limit == 256<<20 }},
		{[]string{"--cpus", "1.5"}, func(p *Plan) bool { return *p.Spec.Linux.Resources.CPU.Quota == 150000 }},
		{[]string{"--pids-limit", "9"}, func(p *Plan) bool { return *p.Spec.Linux.Resources.Pids.Limit == 9 }},
		{[]string{"--pids-limit", "-1"}, func(p *Plan) bool { return p.Spec.Linux.Resources.Pids == nil }},
		{[]string{"--read-only"}, func(p *Plan) bool { return p.Spec.Root.Readonly }},
		{[]string{"-w", "/a/../b"}, func(p *Plan) bool { return p.Spec.Process.Cwd == "/b" }},
		{[]string{"-h", "my.host"}, func(p *Plan) bool { return p.Hostname == "my.host" && p.Spec.Hostname == "my.host" }},
		{[]string{"--ulimit", "nofile=5:6"}, func(p *Plan) bool {
			return rlimit(p, "RLIMIT_NOFILE") == specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: 5, Hard: 6}
		}},
		{[]string{"--ulimit", "core=0"}, func(p *Plan) bool {
			return rlimit(p, "RLIMIT_CORE").Type != "" && rlimit(p, "RLIMIT_NOFILE").Soft == 1024
		}},
		{[]string{"--ulimit", "memlock=-1"}, func(p *Plan) bool { return rlimit(p, "RLIMIT_MEMLOCK").Soft == 1<<64-1 }},
		{[]string{"--sysctl", "net.core.somaxconn=9"}, func(p *Plan) bool { return p.Sysctls["net.core.somaxconn"] == "9" }},
		{[]string{"--sysctl", "kernel.msgmax=9"}, func(p *Plan) bool { return p.Spec.Linux.Sysctl["kernel.msgmax"] == "9" }},
		{[]string{"--network", "none"}, func(p *Plan) bool { return p.Network == NoNetwork && len(p.Sysctls) == 0 }},
		{[]string{"--dns", "9.9.9.9"}, func(p *Plan) bool { return cmp.Equal(p.Nameservers, []string{"9.9.9.9"}) }},
		{[]string{"--device", "/dev/null"}, func(*Plan) bool { return true }},
		{[]string{"--device", "/dev/sdb"}, func(p *Plan) bool { return device(p) == "/dev/sdb 8:16 rwm" }},
		{[]string{"--device", "/dev/sdb:/dev/x"}, func(p *Plan) bool { return device(p) == "/dev/x 8:16 rwm" }},
		{[]string{"--device", "/dev/sdb:r"}, func(p *Plan) bool { return device(p) == "/dev/sdb 8:16 r" }},
		{[]string{"--device", "/dev/sdb:/dev/x:rw", "--device-write-bps", "/dev/sdb:1mb", "--device-read-iops", "/dev/sdb:9"}, func(p *Plan) bool {
			io := p.Spec.Linux.Resources.BlockIO
			return device(p) == "/dev/x 8:16 rw" && io.ThrottleWriteBpsDevice[0].Rate == 1<<20 && io.ThrottleReadIOPSDevice[0].Rate == 9 && io.ThrottleReadIOPSDevice[0].Minor == 16
		}},
		{[]string{"--cap-drop", "ALL"}, func(p *Plan) bool { return len(p.Spec.Process.Capabilities.Bounding) == 0 }},
		{[]string{"--cap-drop", "all", "--cap-add", "net_admin,CAP_CHOWN"}, func(p *Plan) bool {
			return cmp.Equal(p.Spec.Process.Capabilities.Effective, []string{"CAP_CHOWN", "CAP_NET_ADMIN"})
		}},
		{[]string{"--cap-add", "ALL", "--cap-drop", "mknod"}, func(p *Plan) bool {
			return len(p.Spec.Process.Capabilities.Bounding) == len(allCapabilities)-1
		}},
		{[]string{"-u", "www"}, func(p *Plan) bool {
			return p.Spec.Process.Capabilities.Effective == nil && len(p.Spec.Process.Capabilities.Bounding) > 0
		}},
		{[]string{"--security-opt", "seccomp=unconfined"}, func(p *Plan) bool { return p.Spec.Linux.Seccomp == nil }},
		{[]string{"--security-opt", "seccomp=" + profile}, func(p *Plan) bool { return p.Spec.Linux.Seccomp.DefaultAction == specs.ActAllow }},
		{[]string{"--security-opt", "no-new-privileges"}, func(p *Plan) bool { return p.Spec.Process.NoNewPrivileges }},
		{[]string{"--security-opt", "no-new-privileges:true"}, func(p *Plan) bool { return p.Spec.Process.NoNewPrivileges }},
		{[]string{"--security-opt", "systempaths=unconfined"}, func(p *Plan) bool { return p.Spec.Linux.MaskedPaths == nil }},
		{[]string{"--stop-signal", "quit"}, func(p *Plan) bool { return p.StopSignal == 3 }},
		{[]string{"--shm-size", "1g"}, func(p *Plan) bool { return p.ShmBytes == 1<<30 }},
	} {
		if p := plan(t, tt.args...); !tt.ok(p) {
			t.Errorf("%q: plan %+v, spec %+v, process %+v, linux %+v", tt.args, p, p.Spec, p.Spec.Process, p.Spec.Linux)
		}
	}
}

func TestMounts(t *testing.T) {
	host := t.TempDir()
	missing := filepath.Join(host, "made", "later")
	f, _ := parse(t, "-v", host+":/data:ro", "-v", missing+":/later", "-v", "named:/named", "-v", "/anon",
		"--tmpfs", "/run", "--tmpfs", "/tmp:exec,size=1m", "-v", host+":/etc/hosts", "-v", host+":/data/in/side")
	in := input(t)
	in.Image.Volumes = map[string]struct{}{"/var/lib/db": {}, "/named": {}}
	p, err := f.Plan(in)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]specs.Mount{}
	var order []string
	for _, m := range p.Spec.Mounts {
		got[m.Destination] = m
		order = append(order, m.Destination)
	}
	for target, want := range map[string]specs.Mount{
		"/data":      {Type: "bind", Source: host, Options: []string{"rbind", "rprivate", "rro"}},
		"/later":     {Type: "bind", Source: missing, Options: []string{"rbind", "rprivate"}},
		"/named":     {Type: "bind", Source: "/var/volumes/named/_data", Options: []string{"rbind", "rprivate"}},
		"/run":       {Type: "tmpfs", Source: "tmpfs", Options: []string{"noexec", "nosuid", "nodev"}},
		"/tmp":       {Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "exec", "size=1m"}},
		"/etc/hosts": {Type: "bind", Source: host, Options: []string{"rbind", "rprivate"}},
	} {
		want.Destination = target
		if diff := cmp.Diff(want, got[target]); diff != "" {
			t.Errorf("%s: %s", target, diff)
		}
	}
	if slices.Index(order, "/data") > slices.Index(order, "/data/in/side") {
		t.Errorf("order of mounts: %q", order)
	}
	var volumes []string
	for _, v := range p.Volumes {
		volumes = append(volumes, v.Target)
	}
	if diff := cmp.Diff([]string{"/anon", "/later", "/named", "/var/lib/db"}, volumes); diff != "" {
		t.Errorf("volumes: %s", diff)
	}
	// A default mount can be replaced.
	p = plan(t, "--tmpfs", "/dev/shm:size=1m")
	n := 0
	for _, m := range p.Spec.Mounts {
		if m.Destination == "/dev/shm" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d mounts of /dev/shm, want 1", n)
	}
}

func TestPlanRefuses(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.json")
	if err := os.WriteFile(empty, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-m", "1k"}, "the least is 6m"},
		{[]string{"-m", "lots"}, "--memory"},
		{[]string{"-m", "-5m"}, "--memory"},
		{[]string{"--cpus", "-1"}, "--cpus"},
		{[]string{"--cpus", "NaN"}, "--cpus"},
		{[]string{"--cpus", "0.001"}, "--cpus"},
		{[]string{"--pids-limit", "-2"}, "--pids-limit"},
		{[]string{"--shm-size", "x"}, "--shm-size"},
		{[]string{"-w", "relative"}, "--workdir"},
		{[]string{"-h", "bad host"}, "--hostname"},
		{[]string{"-h", strings.Repeat("a", 65)}, "--hostname"},
		{[]string{"-h", strings.Repeat("a", 64)}, "--hostname"},
		{[]string{"--network", strings.Repeat("a", 129)}, "--network"},
		{[]string{"--ulimit", "nofile=6:5"}, "--ulimit"},
		{[]string{"--ulimit", "what=5"}, "--ulimit"},
		{[]string{"--sysctl", "nothing"}, "--sysctl"},
		{[]string{"--sysctl", "kernel.panic=1"}, "of its own"},
		{[]string{"--sysctl", "net/../../etc/passwd=1"}, "--sysctl"},
		{[]string{"--sysctl", "../x=1"}, "--sysctl"},
		{[]string{"--network", "host"}, "its own network"},
		{[]string{"--network", "container:x"}, "its own network"},
		{[]string{"--network", "../x"}, "--network"},
		{[]string{"--network", "none", "-p", "80:80"}, "--publish"},
		{[]string{"-p", "80:80", "-p", "127.0.0.1:80:81"}, "taken twice"},
		{[]string{"--dns", "example.com"}, "--dns"},
		{[]string{"--device", "/dev/sda"}, "--device"},
		{[]string{"--device", "/dev/sda:/dev/null"}, "--device"},
		{[]string{"--device", "/dev/null:/dev/x"}, "--device"},
		{[]string{"--device", "sdb"}, "absolute paths"},
		{[]string{"--device", "/dev/sdb:x"}, "absolute paths"},
		{[]string{"--device", "/dev/sdb:/x:q"}, "absolute paths"},
		{[]string{"--device", "/dev/sdb:/x:r:r"}, "absolute paths"},
		{[]string{"--device-read-bps", "/dev/sdb:1"}, "only what --device gives"},
		{[]string{"--device", "/dev/sdb", "--device-read-iops", "/dev/sdb:0"}, "want SOURCE:RATE"},
		{[]string{"--device", "/dev/sdb", "--device-write-iops", "/dev/sdb"}, "want SOURCE:RATE"},
		{[]string{"--cap-add", "FLY"}, "--cap-add"},
		{[]string{"--cap-add", "ALL", "--cap-drop", "ALL"}, "contradict"},
		{[]string{"--security-opt", "seccomp=/none"}, "no such file"},
		{[]string{"--security-opt", "seccomp=" + empty}, "neither"},
		{[]string{"--security-opt", "apparmor=docker-default"}, "--security-opt"},
		{[]string{"--stop-signal", "HUPP"}, "signal"},
		{[]string{"--stop-signal", "65"}, "signal"},
		{[]string{"-e", "=x"}, "--env"},
		{[]string{"--env-file", "/none"}, "--env-file"},
		{[]string{"-v", "a:b:c:d"}, "--volume"},
		{[]string{"-v", "/tmp:relative"}, "not an absolute path"},
		{[]string{"-v", "/tmp:/"}, "root directory"},
		{[]string{"-v", "/tmp:/a/.."}, "root directory"},
		{[]string{"-v", "/tmp:/proc/1"}, "below /proc"},
		{[]string{"-v", "/tmp:/x:shared"}, "unknown option"},
		{[]string{"-v", "../x y:/x", "-v", "a/b:/y"}, "neither a path nor"},
		{[]string{"-v", "/tmp:/x", "--tmpfs", "/x/"}, "already"},
		{[]string{"--tmpfs", "/x:size=1m,lowerdir=/"}, "unknown option"},
		{[]string{"--tmpfs", "x"}, "--tmpfs"},
		{[]string{"-u", "nobody"}, "--user"},
	} {
		f, _ := parse(t, tt.args...)
		_, err := f.Plan(input(t))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want an error with %q", tt.args, err, tt.want)
		}
	}
	f, _ := parse(t, "-m", "x", "--cpus", "-1", "-u", "nobody")
	if _, err := f.Plan(input(t)); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("three mistakes: %v, want all three", err)
	}
}

func TestParsePorts(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"8080:80", "0.0.0.0:8080->80/tcp"},
		{"8080:80/UDP", "0.0.0.0:8080->80/udp"},
		{"127.0.0.1:8080:80", "127.0.0.1:8080->80/tcp"},
		{"0.0.0.0:8080:80", "0.0.0.0:8080->80/tcp"},
		{"[::1]:8080:80", "[::1]:8080->80/tcp"},
		{"1-2:3-4", "0.0.0.0:1->3/tcp 0.0.0.0:2->4/tcp"},
		{"80", ""},
		{":80", ""},
		{"80:", ""},
		{"0:80", ""},
		{"65536:1", ""},
		{"1-3:1-2", ""},
		{"3-1:3-1", ""},
		{"::1:8080:80", ""},
		{"host:80:80", ""},
		{"80:80/sctp", ""},
		{"1-60000:1-60000", ""},
		{"", ""},
		{"-:-", ""},
		{"+1:2", ""},
	} {
		ports, err := ParsePorts(tt.in)
		var got []string
		for _, p := range ports {
			got = append(got, p.String())
		}
		if s := strings.Join(got, " "); s != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("parse %q = %q, %v, want %q", tt.in, s, err, tt.want)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]int{"9": 9, "KILL": 9, "sigterm": 15, "SIGRTMIN+3": 37, "RTMIN": 34, "64": 64, "": 0, "0": 0, "nope": 0, "RTMIN+31": 0} {
		if got, err := ParseSignal(in); got != want || (err == nil) != (want != 0) {
			t.Errorf("parse %q = %d, %v, want %d", in, got, err, want)
		}
	}
}

func TestNetFiles(t *testing.T) {
	dir := t.TempDir()
	n := NetFiles{Hostname: "a.b", Addresses: []string{"10.87.0.2/16"}, Nameservers: []string{"9.9.9.9"}, Search: []string{"example.com"}}
	for range 2 { // a restart writes them again
		if err := WriteNetFiles(dir, n); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"hostname": "a.b\n", "hosts": "10.87.0.2\ta.b a\n", "resolv.conf": "nameserver 9.9.9.9\nsearch example.com\n",
	} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.HasSuffix(string(data), want) {
			t.Errorf("%s = %q, %v, want %q at its end", name, data, err, want)
		}
	}
	servers, search := parseResolv([]byte("# x\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver bad\nsearch a b\n"))
	if !cmp.Equal(servers, []string{"10.0.0.1"}) || !cmp.Equal(search, []string{"a", "b"}) {
		t.Errorf("resolv.conf = %q %q", servers, search)
	}
}

// copier copies nothing but a file that tells what it was asked for.
type copier struct{}

func (copier) CopyDir(name, dst string) error {
	return os.WriteFile(filepath.Join(dst, "from"), []byte(name), 0o600)
}

func TestMakeVolume(t *testing.T) {
	dir := t.TempDir()
	v := Volume{Path: filepath.Join(dir, "v", "_data"), Name: "v", Target: "/data"}
	for range 2 {
		if err := v.Make(copier{}); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(v.Path, "from")); err != nil || string(got) != "/data" {
			t.Errorf("content = %q, %v", got, err)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(v.Path)); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
	plain := Volume{Path: filepath.Join(dir, "plain", "dir"), Target: "/x"}
	if err := plain.Make(copier{}); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(plain.Path); err != nil || len(entries) != 0 {
		t.Errorf("a plain directory was filled: %v, %v", entries, err)
	}
}

// FuzzPlan gives flags of any kind; what comes out must keep to the rules that
// the rest of the program relies on.
func FuzzPlan(f *testing.F) {
	for _, s := range []string{
		"-m 256m --cpus 1.5 -v /tmp:/x:ro", "-p [::1]:1-2:3-4/udp --ulimit nofile=1:2", "-u www:web -w /.. --tmpfs /run:size=1m",
		"--sysctl net.ipv4.ip_forward=1 --dns ::1 -e A -e B=C", "--cap-add ALL --cap-drop x --security-opt a=b", "-v a:/b -v /c -v x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if strings.Contains(line, "file") || strings.Contains(line, "seccomp") {
			return // would open files
		}
		flags, _, err := tryParse(strings.Fields(line)...)
		if err != nil {
			return
		}
		p, err := flags.Plan(input(t))
		if err != nil {
			return
		}
		for _, m := range p.Spec.Mounts {
			if !filepath.IsAbs(m.Destination) || filepath.Clean(m.Destination) != m.Destination || strings.ContainsRune(m.Source+m.Destination, 0) {
				t.Errorf("mount %+v", m)
			}
		}
		for _, env := range p.Spec.Process.Env {
			if name, _, ok := strings.Cut(env, "="); !ok || name == "" || strings.ContainsRune(env, 0) {
				t.Errorf("environment %q", env)
			}
		}
		for name := range p.Sysctls {
			if strings.Contains(name, "..") || strings.HasPrefix(name, "/") {
				t.Errorf("sysctl %q", name)
			}
		}
		if !filepath.IsAbs(p.Spec.Process.Cwd) || len(p.Spec.Process.Args) == 0 {
			t.Errorf("process %+v", p.Spec.Process)
		}
	})
}
