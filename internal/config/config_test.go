package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// write makes the files (name -> content) in a new directory and returns the
// path of main.toml in it.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "main.toml")
}

func TestDefaultIsValid(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
}

func TestFewKeysAllOfThemTagged(t *testing.T) {
	c := Default()
	keys := settings(&c)
	if len(keys) > 25 {
		t.Errorf("%d keys: a configuration of more than 25 is not read by anyone", len(keys))
	}
	for _, s := range keys {
		if strings.HasSuffix(s.key, ".") || strings.Count(s.key, ".") != 1 {
			t.Errorf("key %q is not TABLE.NAME: is a toml tag missing?", s.key)
		}
		switch s.value.Kind() {
		case reflect.String, reflect.Int, reflect.Bool, reflect.Slice:
		default:
			t.Errorf("%s: a %s cannot be decoded", s.key, s.value.Kind())
		}
	}
}

func TestLoadMergesPerKey(t *testing.T) {
	path := write(t, map[string]string{
		"main.toml":               "[hypervisor]\nmachine_type = \"q35\"\ndefault_vcpus = 2\n",
		"config.d/20-b.toml":      "runtime.debug = true\nhypervisor = { default_vcpus = 0x4 }\n",
		"config.d/10-a.toml":      "[hypervisor]\ndefault_vcpus = 3\n[network]\ncni_bin_dirs = [\"/a\", \"/b\"]\n",
		"config.d/README":         "not read",
		"config.d/.hidden.toml":   "not read",
		"config.d/sub/other.toml": "not read",
	})
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Hypervisor.MachineType = "q35"
	want.Hypervisor.DefaultVCPUs = 4
	want.Runtime.Debug = true
	want.Network.CNIBinDirs = []string{"/a", "/b"}
	if diff := cmp.Diff(want, got.Config); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	dropIns := filepath.Join(filepath.Dir(path), "config.d")
	wantFiles := []string{path, dropIns + "/10-a.toml", dropIns + "/20-b.toml"}
	if diff := cmp.Diff(wantFiles, got.Files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for key, want := range map[string]string{
		"hypervisor.machine_type":  path + ":2",
		"hypervisor.default_vcpus": dropIns + "/20-b.toml:2",
		"runtime.debug":            dropIns + "/20-b.toml:1",
		"network.cni_bin_dirs":     dropIns + "/10-a.toml:4",
		"network.bridge":           FromDefault,
	} {
		if got.Origin[key] != want {
			t.Errorf("origin of %s = %s, want %s", key, got.Origin[key], want)
		}
	}
}

func TestLoadReportsEverythingAtOnce(t *testing.T) {
	path := write(t, map[string]string{
		"main.toml": `[hypervisor]
accel = "hvf"
default_vcpu = 1
default_memory = "512"
[hypervisor.qemu]
shared_fs = "9p"
[runtime]
state_dir = "/x"
data_dir = "/x/y"
state_dir = "/z"
nonsense_of_another_world = 1
`,
		"config.d/a.toml": "[[network]]\nsubnet = \"10.1.2.3/16\"\n",
		"config.d/b.toml": "[network]\nbridge = \n",
	})
	_, err := Load(path)
	if err == nil {
		t.Fatal("no error")
	}
	dropIns := filepath.Join(filepath.Dir(path), "config.d")
	got := strings.Split(err.Error(), "\n")
	want := []string{
		path + `:2: hypervisor.accel: "hvf" is not one of auto, kvm, tcg`,
		path + `:3: hypervisor.default_vcpu: there is no such key; did you mean hypervisor.default_vcpus?`,
		path + `:4: hypervisor.default_memory: want an integer, got string "512"`,
		path + `:6: hypervisor.qemu.shared_fs: there is no such key; did you mean hypervisor.shared_fs?`,
		path + `:9: runtime.data_dir: "/x/y" and runtime.state_dir "/x" must not be within one another`,
		path + `:10: runtime.state_dir: is set twice, first in line 8`,
		path + `:11: runtime.nonsense_of_another_world: there is no such key`,
		dropIns + `/a.toml:1: network: there are no arrays of tables here; write [network]`,
		dropIns + `/a.toml:2: network.subnet: 10.1.2.3/16 has host bits; did you mean 10.1.0.0/16?`,
		dropIns + `/b.toml:2: `,
	}
	if len(got) != len(want) {
		t.Fatalf("got %d problems, want %d:\n%s", len(got), len(want), err)
	}
	for i := range want {
		// What the parser says of bad syntax is its own business.
		if got[i] != want[i] && (!strings.HasSuffix(want[i], ": ") || !strings.HasPrefix(got[i], want[i])) {
			t.Errorf("problem %d:\n got %s\nwant %s", i, got[i], want[i])
		}
	}
	if p, ok := errors.AsType[*Error](err); !ok || p.Key != "hypervisor.accel" {
		t.Errorf("first *Error = %v, %v", p, ok)
	}
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"relative path", func(c *Config) { c.Hypervisor.Path = "qemu" }, `hypervisor.path: "qemu" is not an absolute path`},
		{"path with detour", func(c *Config) { c.Hypervisor.Kernel = "/boot/../x" }, `hypervisor.kernel: "/boot/../x" is not in its plain form "/x"`},
		{"modules without kernel", func(c *Config) { c.Hypervisor.KernelModules = "/m" }, `hypervisor.kernel_modules: is set without hypervisor.kernel, which the modules belong to`},
		{"two command lines", func(c *Config) { c.Hypervisor.KernelParams = "a\nb" }, `hypervisor.kernel_params: "a\nb" has control characters`},
		{"no cpu", func(c *Config) { c.Hypervisor.DefaultVCPUs = 0 }, `hypervisor.default_vcpus: 0 is not between 1 and 255`},
		{"no memory", func(c *Config) { c.Hypervisor.DefaultMemory = 4 }, `hypervisor.default_memory: 4 is not between 128 and 1048576 MiB`},
		{"share", func(c *Config) { c.Hypervisor.SharedFS = "nfs" }, `hypervisor.shared_fs: "nfs" is not one of auto, 9p, virtio-fs`},
		{"root as state", func(c *Config) { c.Runtime.StateDir = "/" }, `runtime.state_dir: must be a directory of our own, not /`},
		{"empty data", func(c *Config) { c.Runtime.DataDir = "" }, `runtime.data_dir: "" is not an absolute path`},
		{"root cgroup", func(c *Config) { c.Runtime.CgroupParent = "/" }, `runtime.cgroup_parent: must be a cgroup of our own, not the root`},
		{"timeout", func(c *Config) { c.Runtime.BootTimeout = -1 }, `runtime.boot_timeout: -1 is not between 1 and 3600 s`},
		{"subnet", func(c *Config) { c.Network.Subnet = "x" }, `network.subnet: "x" is not a subnet such as 10.87.0.0/16`},
		{"subnet v6", func(c *Config) { c.Network.Subnet = "fd00::/64" }, `network.subnet: fd00::/64 is not IPv4`},
		{"subnet full", func(c *Config) { c.Network.Subnet = "10.0.0.0/30" }, `network.subnet: 10.0.0.0/30 has no room for containers; take a prefix of 29 bits or fewer`},
		{"bridge", func(c *Config) { c.Network.Bridge = "a/b" }, `network.bridge: "a/b" is not an interface name: 1 to 15 characters, no space, slash or colon`},
		{"no plugins", func(c *Config) { c.Network.CNIBinDirs = nil }, `network.cni_bin_dirs: is empty, so that no plugin can be found`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Default()
			tt.change(&c)
			err := c.Validate()
			if err == nil {
				t.Fatal("valid")
			}
			if err.Error() != tt.want {
				t.Errorf("\n got %s\nwant %s", err, tt.want)
			}
		})
	}
}

func TestLoadChoosesTheFile(t *testing.T) {
	t.Run("given", func(t *testing.T) {
		path := write(t, map[string]string{"main.toml": "runtime.debug = true"})
		t.Setenv(EnvFile, "/nonexistent")
		l, err := Load(path)
		if err != nil || !l.Config.Runtime.Debug {
			t.Errorf("Load = %+v, %v", l, err)
		}
	})
	t.Run("environment", func(t *testing.T) {
		t.Setenv(EnvFile, write(t, map[string]string{"main.toml": "runtime.debug = true"}))
		l, err := Load("")
		if err != nil || !l.Config.Runtime.Debug {
			t.Errorf("Load = %+v, %v", l, err)
		}
	})
	t.Run("given but absent", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "none.toml")
		_, err := Load(path)
		if want := path + ": open: no such file or directory"; err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	})
}

func TestLoadRefusesWhatOthersCanWrite(t *testing.T) {
	for _, name := range []string{"main.toml", "config.d/a.toml", "config.d"} {
		t.Run(name, func(t *testing.T) {
			path := write(t, map[string]string{"main.toml": "", "config.d/a.toml": ""})
			target := filepath.Join(filepath.Dir(path), name)
			if err := os.Chmod(target, 0o777); err != nil {
				t.Fatal(err)
			}
			_, err := Load(path)
			if err == nil || !strings.HasPrefix(err.Error(), target+": others may write") {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestLoadTellsWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil { // as /tmp, which is not to be changed
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "is a directory") || strings.Contains(err.Error(), "chmod") {
		t.Errorf("a directory: %v", err)
	}
	t.Setenv(EnvFile, filepath.Join(dir, "missing.toml"))
	if _, err := Load(""); err == nil || !strings.Contains(err.Error(), EnvFile) {
		t.Errorf("a missing file that the environment names: %v", err)
	}
}

func TestLoadBoundsTheFile(t *testing.T) {
	_, err := Load(write(t, map[string]string{"main.toml": strings.Repeat("#", maxFile+1)}))
	if err == nil || !strings.Contains(err.Error(), "larger than 1024 KiB") {
		t.Errorf("error %v", err)
	}
}

func TestPrintIsReadBack(t *testing.T) {
	path := write(t, map[string]string{"main.toml": `
[hypervisor]
kernel_params = "a=\"b\\c\" é"
[network]
cni_bin_dirs = ["/a b", '/c"d']
`})
	l, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := l.Print(&out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "# "+path+":3\n") || !strings.Contains(out.String(), "# default\n") {
		t.Errorf("origins are missing:\n%s", out.String())
	}
	again, err := Load(write(t, map[string]string{"main.toml": out.String()}))
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if diff := cmp.Diff(l.Config, again.Config); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("[hypervisor]\npath = \"/x\"\n")
	f.Add("a = [1, {b = 2}]\n[[x]]\n")
	f.Add("hypervisor.default_vcpus = 0x7fffffffffff")
	f.Add("network = {cni_bin_dirs = []}")
	f.Add("[\"\"]\n\"\\u0000\" = 1979-05-27")
	f.Fuzz(func(t *testing.T, data string) {
		c := Default()
		for _, p := range decode([]byte(data), "f", &c, make(map[string]string)) {
			if p.Where == "" || p.Text == "" {
				t.Errorf("problem without place or text: %+v", p)
			}
		}
	})
}
