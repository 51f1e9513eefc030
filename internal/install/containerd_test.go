package install

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// program writes a containerd that says which one it is.
func program(t *testing.T, version string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "containerd")
	script := "#!/bin/sh\necho containerd github.com/containerd/containerd " + version + " " + version + "\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// configure writes a configuration; none when the text is "none".
func configure(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if text == "none" {
		return path
	}
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	return path
}

const debian = `version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni" # a comment
`

func TestInstallAndUninstall(t *testing.T) {
	cases := []struct {
		name, config, version string
		untrusted             bool
		// want are the runtimes and their types afterwards.
		plugin string
		want   map[string]string
	}{
		{name: "Debian's, version 2", config: debian, plugin: "io.containerd.grpc.v1.cri", want: map[string]string{"runc": "io.containerd.runc.v2", "kata": shim}},
		{name: "no file, containerd 1", config: "none", version: "1.6.20", plugin: "io.containerd.grpc.v1.cri", want: map[string]string{"runc": "io.containerd.runc.v2", "kata": shim}},
		{name: "no file, containerd 2", config: "none", version: "v2.4.2", plugin: "io.containerd.cri.v1.runtime", want: map[string]string{"kata": shim}},
		{name: "an empty file", config: "", plugin: "cri", want: map[string]string{"runc": "io.containerd.runc.v2", "kata": shim}},
		{name: "Docker's, no version", config: "disabled_plugins = [\"cri\"]\n", plugin: "cri", want: map[string]string{"runc": "io.containerd.runc.v2", "kata": shim}},
		{
			name: "runtimes of the administrator", plugin: "io.containerd.grpc.v1.cri",
			config: "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v1\"",
			want:   map[string]string{"runc": "io.containerd.runc.v1", "kata": shim},
		},
		{name: "version 3", config: "version = 3\n[debug]\nlevel = 'info'\n", plugin: "io.containerd.cri.v1.runtime", want: map[string]string{"kata": shim}},
		{name: "version 4", config: "version = 4\n", plugin: "io.containerd.cri.v1.runtime", want: map[string]string{"kata": shim}},
		{name: "untrusted, version 1", config: "root = '/x'\n", untrusted: true, plugin: "cri", want: map[string]string{"runc": "io.containerd.runc.v2", "kata": shim, "untrusted": shim}},
		{name: "untrusted, version 2", config: debian, untrusted: true, plugin: "io.containerd.grpc.v1.cri", want: map[string]string{"runc": "io.containerd.runc.v2", "kata": shim, "untrusted": shim}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c := Containerd{Config: configure(t, tc.config), Program: "/nothing", Untrusted: tc.untrusted}
			if tc.version != "" {
				c.Program = program(t, tc.version)
			}
			for _, again := range []bool{false, true} {
				ch, err := c.Install(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if ch.Empty() != again {
					t.Errorf("nothing to do: %v, the second time: %v", ch.Empty(), again)
				}
				if err := ch.Apply(); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(c.Config)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(text, []byte(strings.TrimSuffix(tc.config, "none"))) {
				t.Errorf("what was there has changed:\n%s", text)
			}
			f, err := read(text)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for name, h := range f.Plugins[tc.plugin].Containerd.Runtimes {
				got[name] = h.Type
			}
			if u := f.Plugins[tc.plugin].Containerd.Untrusted; u.Type != "" {
				got["untrusted"] = u.Type
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("runtimes, want (-), got (+):\n%s", d)
			}

			for range 2 {
				ch, err := c.Uninstall()
				if err != nil {
					t.Fatal(err)
				}
				if err := ch.Apply(); err != nil {
					t.Fatal(err)
				}
			}
			text, err = os.ReadFile(c.Config)
			if gone := errors.Is(err, fs.ErrNotExist); gone != (tc.config == "none") {
				t.Errorf("read what is left: %v", err)
			}
			if string(text) != strings.TrimSuffix(tc.config, "none") {
				t.Errorf("after all:\n%s\nwant\n%s", text, tc.config)
			}
			left, err := os.ReadDir(filepath.Dir(c.Config))
			if err != nil || len(left) > 1 {
				t.Errorf("left beside it: %v, %v", left, err)
			}
		})
	}
}

// TestInstallAfterOthers has the administrator change the file in between.
func TestInstallAfterOthers(t *testing.T) {
	c := Containerd{Config: configure(t, debian)}
	apply := func(ch Change, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if err := ch.Apply(); err != nil {
			t.Fatal(err)
		}
	}
	apply(c.Install(t.Context()))
	text, err := os.ReadFile(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	const more = "[debug]\n  level = \"debug\"\n"
	if err := os.WriteFile(c.Config, append(text, more...), 0o640); err != nil {
		t.Fatal(err)
	}
	c.Untrusted = true
	apply(c.Install(t.Context()))
	apply(c.Uninstall())
	if text, err = os.ReadFile(c.Config); err != nil || string(text) != debian+more {
		t.Errorf("%v; got\n%s\nwant\n%s", err, text, debian+more)
	}
	if saved, err := os.ReadFile(c.Config + backupSuffix); err != nil || string(saved) != debian {
		t.Errorf("the first state is not kept: %v, %q", err, saved)
	}
	if st, err := os.Stat(c.Config); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

// TestOriginal holds what is said of the copy beside the file.
func TestOriginal(t *testing.T) {
	apply := func(t *testing.T, plan func() (Change, error)) Change {
		t.Helper()
		ch, err := plan()
		if err != nil {
			t.Fatal(err)
		}
		if err := ch.Apply(); err != nil {
			t.Fatal(err)
		}
		return ch
	}
	const block = begin + end
	for _, tc := range []struct {
		name, config, copy string // before
		installed          string // the copy that is claimed after the installation
		left               string // the copy after all
	}{
		{name: "a file", config: debian, installed: debian},
		{name: "none", config: "none"},
		{name: "none, and a copy with a block", config: "none", copy: block},
		{name: "none, and somebody's copy", config: "none", copy: "version = 2\n", left: "version = 2\n"},
		{name: "a copy of an earlier file", config: debian, copy: "version = 2\n", installed: debian},
		{name: "a copy with a block", config: debian, copy: block, installed: debian},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := Containerd{Config: configure(t, tc.config), Program: program(t, "1.6.20")}
			path := c.Config + backupSuffix
			if tc.copy != "" {
				if err := os.WriteFile(path, []byte(tc.copy), 0o640); err != nil {
					t.Fatal(err)
				}
			}
			install := func() (Change, error) { return c.Install(t.Context()) }
			for range 2 {
				got := ""
				if original := apply(t, install).Original(); original != "" {
					b, err := os.ReadFile(original)
					if err != nil {
						t.Fatal(err)
					}
					got = string(b)
				}
				if got != tc.installed {
					t.Errorf("claims %q, want %q", got, tc.installed)
				}
			}
			apply(t, c.Uninstall)
			b, err := os.ReadFile(path)
			if err != nil && !errors.Is(err, fs.ErrNotExist) || string(b) != tc.left {
				t.Errorf("left: %q, %v, want %q", b, err, tc.left)
			}
		})
	}
}

// TestUntrustedIsKept installs again without asking for it.
func TestUntrustedIsKept(t *testing.T) {
	c := Containerd{Config: configure(t, debian), Untrusted: true}
	ch, err := c.Install(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Apply(); err != nil {
		t.Fatal(err)
	}
	c.Untrusted = false
	if ch, err = c.Install(t.Context()); err != nil || !ch.Empty() {
		t.Errorf("changes again, %v:\n%s", err, ch.After)
	}
}

func TestInstallRefuses(t *testing.T) {
	cases := []struct {
		name, config string
		untrusted    bool
		words        []string
	}{
		{name: "no containerd", config: "none", words: []string{"apt-get install containerd", "--containerd-config"}},
		{name: "not TOML", config: "version = 2\n[plugins\n", words: []string{"line 2", "containerd config dump"}},
		{name: "a later version", config: "version = 9\n", words: []string{"version 9", "deploy/containerd"}},
		{name: "another kata", config: "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\nruntime_type = 'io.containerd.kata-qemu.v2'\n", words: []string{"io.containerd.kata-qemu.v2", "remove it"}},
		{name: "plugins in one line", config: "version = 3\nplugins = {}\n", words: []string{"by hand"}},
		{name: "kata's own", config: "[hypervisor]\ndefault_memory = 512\n", words: []string{"kata's own", "--containerd-config"}},
		{name: "untrusted in containerd 2", config: "version = 3\n", untrusted: true, words: []string{"RuntimeClass"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c := Containerd{Config: configure(t, tc.config), Program: "/nothing/containerd", Untrusted: tc.untrusted}
			_, err := c.Install(t.Context())
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range append(tc.words, c.Config) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
		})
	}
	t.Run("no directory", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "missing")
		_, err := (Containerd{Config: filepath.Join(dir, "config.toml"), Program: program(t, "1.6.20")}).Install(t.Context())
		if err == nil || !strings.Contains(err.Error(), "directory") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a link", func(t *testing.T) {
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(configure(t, debian), link); err != nil {
			t.Fatal(err)
		}
		if _, err := (Containerd{Config: link}).Install(t.Context()); err == nil || !strings.Contains(err.Error(), "regular file") {
			t.Errorf("got %v", err)
		}
	})
}

func TestDescribe(t *testing.T) {
	ch := Change{Before: []byte("a\nb\nc\n"), After: []byte("a\nx\nc\nd\n")}
	var out bytes.Buffer
	if err := ch.Describe(&out); err != nil {
		t.Fatal(err)
	}
	if want := "- b\n- c\n+ x\n+ c\n+ d\n"; out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// TestFilesAreTakenApart finds each table of the files that are installed.
func TestFilesAreTakenApart(t *testing.T) {
	for name, want := range map[string][]string{
		"config-v1.toml": {"runc", "kata"}, "config-v2.toml": {"runc", "kata"}, "config-v3.toml": {"kata"},
		"untrusted-v1.toml": {"untrusted_workload_runtime"}, "untrusted-v2.toml": {"untrusted_workload_runtime"},
	} {
		var got []string
		for _, tb := range tables(name) {
			got = append(got, tb.name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: tables %v, want %v", name, got, want)
		}
	}
}
