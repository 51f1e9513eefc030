package subject

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/test/testimage"
)

func TestTinyProgramRuns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hello")
	if err := os.WriteFile(path, hello(), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), path).CombinedOutput()
	if err != nil || string(out) != "hello\n" {
		t.Errorf("got %q, %v; want hello", out, err)
	}
}

func TestArchiveIsReadable(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip("cpio is missing (apt-get install cpio)")
	}
	m, err := newBareMachine(t.TempDir(), "kernel", "tcg")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(m.initrd)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(t.Context(), cpio, "-t", "--quiet")
	cmd.Stdin = f
	out, err := cmd.CombinedOutput()
	if got, want := string(out), "dev\ndev/console\ninit\n"; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func TestNames(t *testing.T) {
	names := Names()
	for _, want := range []string{"qemu", "kata-cold/ctr", "kata-template/cri", "kata-warm/cli", "runc/oci", "crun/ctr", "runsc-debian/oci", "runsc-go/ctr"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %s in %v", want, names)
		}
	}
	if slices.Contains(names, "runsc-go/cri") || Order("kata-cold/ctr", "runc/ctr") >= 0 || Order("runc/ctr", "runc/ctr") != 0 {
		t.Errorf("got %v", names)
	}
	for name, want := range map[string]string{"qemu": "", "kata-cold/ctr": "runc/ctr", "crun/oci": "runc/oci", "kata-warm/cli": "runc/oci", "kata-cold/cri": "runc/cri"} {
		if got := Reference(name); got != want {
			t.Errorf("reference of %s: got %q, want %q", name, got, want)
		}
	}
}

// What a build does not know is left out when it would be switched off, and else
// a reason to skip the runtime.
func TestLinesOf(t *testing.T) {
	off, on, pool := setting{"factory", "enable_template", "false"}, setting{"factory", "enable_template", "true"}, setting{"factory", "vm_cache_number", "4"}
	const knows = "[factory]\nenable_template = true  # default\n"
	for _, tc := range []struct {
		name, shown string
		settings    []setting
		want, err   string
	}{
		{"off, unknown", "[runtime]\n", []setting{off}, "", ""},
		{"off, known", knows, []setting{off}, "[factory]\nenable_template = false\n", ""},
		{"on, unknown", "[runtime]\n", []setting{on}, "", "enable_template"},
		{"on, known", knows, []setting{on}, "[factory]\nenable_template = true\n", ""},
		{"pool, unknown", knows, []setting{on, pool}, "", "vm_cache_number"},
		{"pool, known", knows + "vm_cache_number = 0\n", []setting{on, pool}, "[factory]\nenable_template = true\nvm_cache_number = 4\n", ""},
	} {
		got, err := linesOf(tc.shown, tc.settings)
		if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: got %q, %v; want %q, error %q", tc.name, got, err, tc.want, tc.err)
		}
	}
}

func TestAgentAnswer(t *testing.T) {
	const trace = "  start ms  for ms    phase\n      -0.5     0.4  guest image\n      46.8   144.2      VMM                  ====\n     191.0  3010.0      agent's first answer    =======\n    3201.0   323.1    guest set-up\n"
	got, err := agentAnswer(trace)
	if want := (191.0 + 3010.0 - 46.8) / 1000; err != nil || got != want {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"", "1 2 VMM\n", "5 1 VMM\n1 1 guest boot to agent's first answer\n"} {
		if _, err := agentAnswer(bad); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

func TestPagesDiffer(t *testing.T) {
	data := pages(1)
	if len(data) != 1<<20 {
		t.Fatalf("%d bytes", len(data))
	}
	seen := map[string]bool{}
	for page := range slices.Chunk(data, 4096) {
		if seen[string(page)] || page[0] == 0 && page[1] == 0 {
			t.Fatal("a page is there twice, or is nothing")
		}
		seen[string(page)] = true
	}
}

func TestUntilOutput(t *testing.T) {
	sh := func(text string) *exec.Cmd { return exec.CommandContext(t.Context(), "sh", "-c", text) }
	s, err := runOnce(sh("echo started; read x || :"))
	if err != nil || s.First <= 0 || s.Whole < s.First {
		t.Errorf("got %+v, %v", s, err)
	}
	if _, err := runOnce(sh("echo started; echo oh >&2; exit 3")); err == nil || !strings.Contains(err.Error(), "oh") {
		t.Errorf("exit 3: got %v", err)
	}
	if _, err := runOnce(sh("echo oh >&2")); err == nil || !strings.Contains(err.Error(), "oh") {
		t.Errorf("no output: got %v", err)
	}
	if _, err := untilOutput(sh("echo started; exec sleep 1000"), first, true); err != nil {
		t.Errorf("killed: %v", err)
	}
	var out strings.Builder
	if err := copyOutput(sh("echo one; echo two"), &out); err != nil || out.String() != "one\ntwo\n" {
		t.Errorf("copy: %q, %v", out.String(), err)
	}
	if err := copyOutput(sh("echo oh >&2; exit 1"), &out); err == nil || !strings.Contains(err.Error(), "oh") {
		t.Errorf("copy of a failure: %v", err)
	}
}

// The bundle is what `runc spec` writes, in the places that the rig accounts for.
func TestBundle(t *testing.T) {
	r := testRig(t)
	b := &bundles{rig: r, rootfs: "/rootfs", template: []byte(`{"ociVersion":"1.0.2","root":{"path":"rootfs","readonly":true},"process":{"terminal":true,"args":["sh"]},"linux":{}}`)}
	dir, err := b.make("one", []string{"echo", "started"})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	var spec specs.Spec
	if err != nil || json.Unmarshal(data, &spec) != nil {
		t.Fatalf("%v: %s", err, data)
	}
	if spec.Root.Path != "/rootfs" || !spec.Root.Readonly || spec.Process.Terminal || !slices.Equal(spec.Process.Args, []string{"echo", "started"}) ||
		spec.Linux.CgroupsPath != "/"+r.name()+"/oci/one" || len(spec.Mounts) != 1 || spec.Mounts[0].Destination != Volume {
		t.Errorf("got %s", data)
	}
}

func TestImage(t *testing.T) {
	dir := t.TempDir()
	base, err := emptyLayout(filepath.Join(dir, "base"))
	if err != nil {
		t.Fatal(err)
	}
	if err := appendLayer(base, filepath.Join(dir, "image"), map[string][]byte{"hello": hello()}); err != nil {
		t.Fatal(err)
	}
	rootfs := filepath.Join(dir, "rootfs")
	if err := testimage.Unpack(t.Context(), filepath.Join(dir, "image"), rootfs); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(rootfs, Hello)); err != nil || string(data) != string(hello()) {
		t.Errorf("%s: %v", Hello, err)
	}
	if st, err := os.Stat(filepath.Join(rootfs, Volume)); err != nil || !st.IsDir() {
		t.Errorf("%s: %v", Volume, err)
	}
}
