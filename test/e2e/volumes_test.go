//go:build integration

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/seed-efd44b36/kata/test/testimage"
)

// TestNamedVolume: a named volume starts with what the image has in its place,
// keeps what is written, and outlives its containers.
func TestNamedVolume(t *testing.T) {
	t.Parallel()
	e := installation(t, "")
	run := func(flags, script string) string {
		t.Helper()
		args := append([]string{"run", "--rm", "--network", "none"}, strings.Fields(flags)...)
		return e.MustKata(t, append(args, busybox, "sh", "-ec", script)...)
	}
	want(t, run("-v data:/etc", `grep -c root: /etc/passwd; stat -c %a:%u /etc; echo written > /etc/new; chown 1000:1000 /etc/new`), "1", "755:0")
	want(t, run("-v data:/other:ro", `cat /other/new; stat -c %u:%g /other/new; grep -c root: /other/passwd; (echo x > /other/new) 2>&1 | sed 's/.*: //'`),
		"written", "1000:1000", "1", "Read-only file system")
	// A volume in use by two machines at once; an empty one of a path that
	// the image has not.
	e.MustKata(t, "run", "-d", "--name", "holder", "--network", "none", "-v", "data:/data", "-v", "empty:/no/such/path", busybox, "sleep", "1000")
	want(t, run("-v data:/data", `cat /data/new; echo shared > /data/shared`), "written")
	want(t, e.MustKata(t, "exec", "holder", "sh", "-c", `cat /data/shared; ls -A /no/such/path | wc -l; stat -c %a /no/such/path`), "shared", "0", "755")
	e.MustKata(t, "rm", "-f", "holder")
	e.MustKata(t, "gc")
	b, err := os.ReadFile(filepath.Join(e.Data, "volumes", "data", "_data", "shared"))
	if err != nil || string(b) != "shared\n" {
		t.Errorf("the volume after gc: %q, %v", b, err)
	}
}

// TestAnonymousVolume: a volume without a name, of a flag or of the image, is
// the container's own and goes with it.
func TestAnonymousVolume(t *testing.T) {
	t.Parallel()
	e := installation(t, "")
	ref := withVolume(t, "/etc")
	e.MustKata(t, "run", "--name", "one", "--network", "none", "-v", "/mine", ref, "sh", "-ec", "echo one > /mine/file; echo one > /etc/file; grep -q root: /etc/passwd")
	want(t, e.MustKata(t, "run", "--rm", "--network", "none", "-v", "/mine", ref, "sh", "-ec", "ls /mine | wc -l; ls /etc/file 2>/dev/null || echo none; mount | grep -c ' on /etc '"), "0", "none", "1")
	// Those of a stopped container are kept until it is removed.
	files, err := filepath.Glob(filepath.Join(e.Data, "containers", "*", "volumes", "*", "file"))
	if err != nil || len(files) != 2 {
		t.Errorf("files of the stopped container: %q, %v; want two", files, err)
	}
	e.MustKata(t, "rm", "one")
}

// imageOf reads an image of a layout that has one.
func imageOf(t *testing.T, ref string) v1.Image {
	t.Helper()
	img, err := testimage.Read(strings.TrimPrefix(ref, "oci:"))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// withVolume is a copy of the busybox image whose configuration names a volume.
func withVolume(t *testing.T, path string) string {
	t.Helper()
	img := imageOf(t, busybox)
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.Config.Volumes = map[string]struct{}{path: {}}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "layout")
	if _, err := layout.Write(dir, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img})); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir
}

// unpack puts an image's files into a directory.
func unpack(t *testing.T, ref, dir string) {
	t.Helper()
	if err := testimage.Unpack(t.Context(), strings.TrimPrefix(ref, "oci:"), dir); err != nil {
		t.Fatal(err)
	}
}

// TestBindMounts: directories and files of the host, made when they are not
// there; what is read-only stays as it is, whatever the container tries.
func TestBindMounts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, content := range map[string]string{"ro/file": "kept\n", "ro/sub/file": "kept\n", "single": "kept\n", "rw/file": "old\n"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := sh(t, `
refused() { "$@" 2>/dev/null && echo "done: $*" || true; }
try() {
	for f in /ro/file /ro/sub/file /single; do refused sh -c "echo x > $f"; refused touch $f; refused chmod 777 $f; done
	refused rm /ro/file; refused mv /ro/file /ro/x; refused touch /ro/new; refused ln /ro/file /ro/hard; refused ln -s x /ro/soft
	refused mkdir /ro/dir; refused mknod /ro/null c 1 3; refused chown 1:1 /ro/sub; refused truncate -s 1 /single
}
try
# A privileged container can lift its own limits, but not the host's.
mount -o remount,rw /ro || true; mount -o bind,remount,rw /ro || true; mount -o bind,remount,rw /single || true
try
cat /ro/file /ro/sub/file /single
echo new > /rw/file; echo made > /made/file; mkdir /rw/dir; mknod /rw/null c 1 3`,
		"--cap-add", "SYS_ADMIN", "--cap-add", "DAC_READ_SEARCH",
		"-v", dir+"/ro:/ro:ro", "-v", dir+"/single:/single:ro", "-v", dir+"/rw:/rw", "-v", dir+"/made/here:/made")
	want(t, out, "kept", "kept", "kept")
	for name, wanted := range map[string]string{
		"ro/file": "kept\n", "ro/sub/file": "kept\n", "single": "kept\n", "rw/file": "new\n", "made/here/file": "made\n",
	} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != wanted {
			t.Errorf("%s on the host: %q, %v; want %q", name, b, err, wanted)
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, "ro"))
	if err != nil || len(entries) != 2 {
		t.Errorf("the read-only directory has %v, %v; want two entries", entries, err)
	}
}

// TestLinksOutOfTheRoot: symbolic links in a root file system lead nowhere but
// into it, not for mounts, not for the user, not for the working directory.
func TestLinksOutOfTheRoot(t *testing.T) {
	t.Parallel()
	outside, root := t.TempDir(), filepath.Join(t.TempDir(), "root")
	for name, content := range map[string]string{"secret": "of the host\n", "dir/file": "of the host\n", "passwd": "evil:x:4242:4242::/:/bin/sh\n"} {
		path := filepath.Join(outside, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	unpack(t, busybox, root)
	up := strings.Repeat("../", 20)
	for _, link := range [][2]string{
		{filepath.Join(outside, "dir"), "absolute"},
		{up + strings.TrimPrefix(outside, "/") + "/dir", "relative"},
		{filepath.Join(outside, "secret"), "file"},
		{filepath.Join(outside, "new"), "dangling"},
	} {
		if err := os.Symlink(link[0], filepath.Join(root, link[1])); err != nil {
			t.Fatal(err)
		}
	}
	source := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(source, []byte("of the volume\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	// Every link is followed, in the root.
	want(t, env.MustKata(t, "run", "--rm", "--network", "none", "--rootfs", root, "-w", "/relative/made", "--tmpfs", "/relative/memory",
		"-v", source+":/absolute/file", "-v", source+":/relative/other", "-v", source+":/file", "-v", source+":/dangling/x",
		"sh", "-ec", `cat /absolute/file /relative/other /file /dangling/x; echo x > /absolute/memory/x; echo x > /absolute/y; pwd`),
		"of the volume", "of the volume", "of the volume", "of the volume", filepath.Join(outside, "dir/made"))
	for name, wanted := range map[string]string{"secret": "of the host\n", "dir/file": "of the host\n"} {
		if b, err := os.ReadFile(filepath.Join(outside, name)); err != nil || string(b) != wanted {
			t.Errorf("%s on the host: %q, %v", name, b, err)
		}
	}
	for dir, n := range map[string]int{outside: 3, filepath.Join(outside, "dir"): 1} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != n {
			t.Errorf("%s on the host has %v, %v; want %d entries", dir, entries, err, n)
		}
	}
	// The list of users is the root's own.
	passwd := filepath.Join(root, "etc", "passwd")
	if err := os.Remove(passwd); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(outside, "passwd"), passwd); err != nil {
		t.Fatal(err)
	}
	oneError(t, env.Kata(t, "run", "--rm", "--rootfs", root, "-u", "evil", "id"), 125, "evil")
}
