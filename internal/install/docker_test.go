package install

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const dockerRuntime = "/opt/kata/bin/kata-runtime"

func TestDockerInstallAndUninstall(t *testing.T) {
	for _, tc := range []struct {
		name, config string
		want         []string // runtimes afterwards
	}{
		{name: "no file", config: "none", want: []string{"kata"}},
		{name: "an empty file", config: "", want: []string{"kata"}},
		{name: "an empty line", config: " \n", want: []string{"kata"}},
		{name: "an empty object", config: "{}\n", want: []string{"kata"}},
		{name: "settings", config: "{\n  \"debug\": true\n}", want: []string{"kata"}},
		{name: "settings in one line", config: `{"debug": true, "exec-opts": ["a={"]}`, want: []string{"kata"}},
		{name: "no runtime", config: `{"runtimes" : { }, "debug": true}`, want: []string{"kata"}},
		{name: "a runtime", config: `{"debug": true, "runtimes": {"runsc": {"path": "/x"}}}`, want: []string{"kata", "runsc"}},
		{name: "runtimes below something else", config: `{"a": {"runtimes": {}}, "b": "runtimes"}`, want: []string{"kata"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Docker{Config: configure(t, tc.config), Runtime: dockerRuntime}
			for _, again := range []bool{false, true} {
				ch, err := d.Install()
				if err != nil {
					t.Fatal(err)
				}
				if ch.Empty() != again {
					t.Fatalf("again %v: the change is empty: %v", again, ch.Empty())
				}
				if err := ch.Apply(); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(d.Config)
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				Runtimes map[string]struct{ Path string }
			}
			if err := json.Unmarshal(text, &got); err != nil {
				t.Fatalf("%v in:\n%s", err, text)
			}
			if got.Runtimes["kata"].Path != dockerRuntime || len(got.Runtimes) != len(tc.want) {
				t.Errorf("runtimes %v, want %v", got.Runtimes, tc.want)
			}
			for _, again := range []bool{false, true} {
				ch, err := d.Uninstall()
				if err != nil {
					t.Fatal(err)
				}
				if ch.Empty() != again {
					t.Fatalf("uninstall again %v: the change is empty: %v", again, ch.Empty())
				}
				if err := ch.Apply(); err != nil {
					t.Fatal(err)
				}
			}
			text, err = os.ReadFile(d.Config)
			if errors.Is(err, fs.ErrNotExist) {
				text, err = []byte("none"), nil
			}
			if diff := cmp.Diff(tc.config, string(text)); err != nil || diff != "" {
				t.Errorf("after uninstall: %v\n%s", err, diff)
			}
			if left, _ := filepath.Glob(filepath.Dir(d.Config) + "/*"); len(left) > 1 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestDockerRefuses(t *testing.T) {
	const whole = "{\"debug\": true, \"runtimes\": {\"kata\": {\"path\": \"" + dockerRuntime + "\"}}}"
	for _, tc := range []struct {
		name, config       string
		install, uninstall string // parts of the errors; empty: no error
	}{
		{name: "not JSON", config: "debug = true", install: "dockerd --validate", uninstall: "dockerd --validate"},
		{name: "a list", config: "[]", install: "dockerd --validate", uninstall: "dockerd --validate"},
		{name: "nothing", config: "null", install: "not an object", uninstall: "not an object"},
		{name: "runtimes twice", config: `{"runtimes": {}, "runtimes": {}}`, install: "twice", uninstall: "twice"},
		{name: "no runtimes", config: `{"runtimes": null}`, install: "not an object", uninstall: "not an object"},
		{name: "another kata", config: `{"runtimes": {"kata": {"path": "/else"}}}`, install: "already", uninstall: "by hand"},
		{name: "the same, by another hand", config: whole, uninstall: "by hand"},
		{name: "the default", config: strings.Replace(whole, "{", `{"default-runtime": "kata",`, 1), uninstall: "default-runtime"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := Docker{Config: configure(t, tc.config), Runtime: dockerRuntime}
			for what, plan := range map[string]func() (Change, error){"install": d.Install, "uninstall": d.Uninstall} {
				want := tc.install
				if what == "uninstall" {
					want = tc.uninstall
				}
				if _, err := plan(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v, want %q", what, err, want)
				}
			}
		})
	}
}

func FuzzDocker(f *testing.F) {
	for _, seed := range []string{"{}", "", `{"runtimes": {"x": {}}}`, `{"a": "runtimes", "runtimes":{}}`, "{\"runtimes\"\n:\t{ }}", `{"Runtimes": {}}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d := Docker{Config: configure(t, text), Runtime: dockerRuntime}
		ch, err := d.Install()
		if err != nil || ch.Empty() {
			return
		}
		if !json.Valid(ch.After) {
			t.Fatalf("not valid: %s", ch.After)
		}
		if strings.TrimSpace(text) == "" {
			return // it is begun anew
		}
		if err := os.WriteFile(d.Config, ch.After, 0o600); err != nil {
			t.Fatal(err)
		}
		if ch, err = d.Uninstall(); err != nil || ch.After == nil {
			return
		}
		if f, err := locate(ch.After); err != nil || f.runtimes["kata"] != nil {
			t.Errorf("%q became %q: %v", text, ch.After, err)
		}
	})
}

func TestDropIns(t *testing.T) {
	for name, of := range map[string]func(path, dir string) DropIn{"podman": Podman, "crio": CRIO} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "conf.d", "50-kata.conf")
			apply := func(plan func() (Change, error), changes bool) {
				t.Helper()
				ch, err := plan()
				if err != nil {
					t.Fatal(err)
				}
				if ch.Empty() == changes {
					t.Fatalf("changes: %v, want %v", !changes, changes)
				}
				if err := ch.Apply(); err != nil {
					t.Fatal(err)
				}
			}
			old, d := of(path, "/opt/old"), of(path, "/opt/kata/bin/")
			apply(d.Uninstall, false)
			apply(old.Install, true)
			apply(d.Install, true)
			apply(d.Install, false)
			text, err := os.ReadFile(path)
			if err != nil || !strings.Contains(string(text), `"/opt/kata/bin/kata-runtime"`) || strings.Contains(string(text), "/usr/local") {
				t.Errorf("%v:\n%s", err, text)
			}
			apply(d.Uninstall, true)
			apply(d.Uninstall, false)
			if left, _ := filepath.Glob(filepath.Dir(path) + "/*"); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			for _, other := range []string{"", "[engine]\n", string(text) + "x = 1\n", strings.Replace(string(text), "\n[", "\nx = 1\n[", 1), strings.Replace(string(text), "/opt/kata", "/opt/mine", 1), strings.Replace(string(text), end, "# mine\n"+end, 1)} {
				if err := os.WriteFile(path, []byte(other), 0o600); err != nil {
					t.Fatal(err)
				}
				for _, plan := range []func() (Change, error){d.Install, d.Uninstall} {
					if _, err := plan(); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "move it away") {
						t.Errorf("%q: %v", other, err)
					}
				}
			}
			if _, err := of(filepath.Join(t.TempDir(), "none", "conf.d", "x"), "/opt").Install(); err == nil || !strings.Contains(err.Error(), "install the engine") {
				t.Errorf("without the engine's directory: %v", err)
			}
		})
	}
}
