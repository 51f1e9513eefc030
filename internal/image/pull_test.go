package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/seed-efd44b36/kata/internal/image/layer/layertest"
)

func openStore(t testing.TB) *Store {
	t.Helper()
	return NewStore(filepath.Join(t.TempDir(), "store"))
}

// build makes an image with one layer per argument.
func build(t testing.TB, layers ...[]byte) v1.Image {
	t.Helper()
	img, err := mutate.Config(empty.Image, v1.Config{
		Cmd: []string{"/bin/hello"}, Env: []string{"A=b"}, User: "me", WorkingDir: "/w",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data)), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	return img
}

func twoLayers(t testing.TB) v1.Image {
	return build(t,
		layertest.Tar(t, layertest.Entry(tar.TypeDir, "etc"), layertest.Entry(tar.TypeReg, "etc/passwd"), layertest.Entry(tar.TypeReg, "etc/gone"),
			layertest.Entry(tar.TypeDir, "old"), layertest.Entry(tar.TypeReg, "old/a"), layertest.Entry(tar.TypeSymlink, "pw", layertest.Link("/etc/passwd"))),
		layertest.Tar(t, layertest.Entry(tar.TypeDir, "etc"), layertest.Entry(tar.TypeReg, "etc/.wh.gone"), layertest.Entry(tar.TypeReg, "etc/group"),
			layertest.Entry(tar.TypeDir, "old"), layertest.Entry(tar.TypeReg, "old/.wh..wh..opq"), layertest.Entry(tar.TypeReg, "old/b")))
}

func amd64() PullOptions { return PullOptions{Arch: "amd64"} }

// serve puts the image into a registry on the loopback interface.
func serve(t testing.TB, img v1.Image) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug))))
	t.Cleanup(srv.Close)
	ref := strings.TrimPrefix(srv.URL, "http://") + "/test/image:v1"
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	return ref
}

func writeLayout(t testing.TB, img v1.Image, tags ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range tags {
		if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag})); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func writeDocker(t testing.TB, img v1.Image) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	tag, err := name.NewTag("example.com/test/image:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		t.Fatal(err)
	}
	return file
}

// pack writes a directory as a tar file, as `skopeo copy` to oci-archive does.
func pack(t testing.TB, dir string, compressed bool) string {
	t.Helper()
	var buf bytes.Buffer
	var w io.WriteCloser = struct {
		io.Writer
		io.Closer
	}{&buf, io.NopCloser(nil)}
	if compressed {
		w = gzip.NewWriter(&buf)
	}
	tw := tar.NewWriter(w)
	if err := tw.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if compressed {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "oci.tar")
	if err := os.WriteFile(file, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestPullFromEverywhere(t *testing.T) {
	layertest.NeedRoot(t)
	img := twoLayers(t)
	dir := writeLayout(t, img, "v1")
	multi := writeLayout(t, img, "v1", "v2")
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, ref string }{
		{"registry", serve(t, img)},
		{"layout", "oci:" + dir},
		{"layout by path", dir},
		{"layout with tag", "oci:" + multi + ":v2"},
		{"oci archive", pack(t, dir, false)},
		{"compressed oci archive", "oci-archive:" + pack(t, dir, true)},
		{"docker archive", "docker-archive:" + writeDocker(t, img) + ":v1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			var reports []Progress
			opts := amd64()
			opts.Progress = func(p Progress) { reports = append(reports, p) }
			got, err := s.Pull(t.Context(), tt.ref, opts)
			if err != nil {
				t.Fatal(err)
			}
			if got.ID != id.String() || len(got.Layers) != 2 {
				t.Errorf("pulled %+v, want ID %s and 2 layers", got, id)
			}
			if want := []string{"/bin/hello"}; !cmp.Equal(got.Config.Cmd, want) || got.Config.User != "me" || got.Config.WorkingDir != "/w" {
				t.Errorf("config = %+v", got.Config)
			}
			if last := reports[len(reports)-1]; last.Layer != 2 || last.Layers != 2 || last.Done == 0 {
				t.Errorf("last progress = %+v", last)
			}
			stored, err := s.Get(tt.ref)
			if diff := cmp.Diff(got, stored); err != nil || diff != "" {
				t.Errorf("get after pull: %v, difference %s", err, diff)
			}
			if byID, err := s.Get(id.Hex[:12]); err != nil || byID.ID != got.ID {
				t.Errorf("get by ID: %+v, %v", byID, err)
			}
			checkMount(t, s, got)
			again, err := s.Ensure(t.Context(), tt.ref, opts)
			if diff := cmp.Diff(got, again); err != nil || diff != "" {
				t.Errorf("ensure: %v, difference %s", err, diff)
			}
		})
	}
}

// mountAndList mounts the image and lists its files. The options would be too
// long for mount(2) with many layers, so each directory gets a short name.
func mountAndList(t *testing.T, s *Store, img Image, dir string) []string {
	t.Helper()
	mounts, err := s.Mount(img, dir)
	if err != nil {
		t.Fatal(err)
	}
	m := mounts[0]
	short := t.TempDir()
	lower := strings.TrimPrefix(m.GetOptions()[0], "lowerdir=")
	lower = strings.ReplaceAll(lower, `\:`, "\x00")
	var links []string
	for i, d := range strings.Split(lower, ":") {
		link := filepath.Join(short, fmt.Sprint(i))
		d = strings.ReplaceAll(strings.ReplaceAll(d, "\x00", ":"), `\\`, `\`)
		if err := os.Symlink(d, link); err != nil {
			t.Fatal(err)
		}
		links = append(links, fmt.Sprint(i))
	}
	t.Chdir(short)
	options := "lowerdir=" + strings.Join(links, ":") + "," + strings.Join(m.GetOptions()[1:], ",")
	at := t.TempDir()
	if err := unix.Mount(m.GetSource(), at, m.GetType(), 0, options); err != nil {
		t.Fatalf("mount %s: %v", options, err)
	}
	var found []string
	err = filepath.WalkDir(at, func(p string, _ os.DirEntry, err error) error {
		found = append(found, strings.TrimPrefix(p, at))
		return err
	})
	if uerr := unix.Unmount(at, 0); uerr != nil {
		t.Fatal(uerr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// checkMount mounts the image twice and looks at what twoLayers has put there.
func checkMount(t *testing.T, s *Store, img Image) {
	t.Helper()
	dir := t.TempDir()
	for range 2 {
		found := mountAndList(t, s, img, dir)
		want := []string{"", "/etc", "/etc/group", "/etc/passwd", "/old", "/old/b", "/pw"}
		if diff := cmp.Diff(want, found); diff != "" {
			t.Errorf("files of the mounted image: %s", diff)
		}
	}
	tree := s.Tree(img, dir)
	for name, want := range map[string]string{"/etc/passwd": "etc/passwd", "etc/group": "etc/group", "/pw": "etc/passwd", "/old/../pw": "etc/passwd", "/../etc/group": "etc/group"} {
		if got, err := tree.ReadFile(name, 100); err != nil || string(got) != want {
			t.Errorf("read %s = %q, %v, want %q", name, got, err, want)
		}
	}
	for _, name := range []string{"/etc/gone", "/old/a", "/none", "/etc", "/etc/passwd/x", "/"} {
		if got, err := tree.ReadFile(name, 100); err == nil {
			t.Errorf("read %s = %q, want an error", name, got)
		}
	}
	if _, err := tree.ReadFile("/etc/passwd", 3); err == nil {
		t.Error("read of a file above the limit: no error")
	}
}

func TestPullDamaged(t *testing.T) {
	layertest.NeedRoot(t)
	img := twoLayers(t)
	damage := func(change func(t *testing.T, dir string, m *v1.Manifest)) string {
		dir := writeLayout(t, img, "v1")
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		change(t, dir, m)
		return dir
	}
	blobOf := func(dir string, h v1.Hash) string { return filepath.Join(dir, "blobs", h.Algorithm, h.Hex) }
	overwrite := func(t *testing.T, file string, data []byte) {
		t.Helper()
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name    string
		change  func(t *testing.T, dir string, m *v1.Manifest)
		wantErr string
	}{
		{"other content", func(t *testing.T, dir string, m *v1.Manifest) {
			overwrite(t, blobOf(dir, m.Layers[1].Digest), layertest.Tar(t, layertest.Entry(tar.TypeReg, "evil")))
		}, "tampered"},
		{"truncated layer", func(t *testing.T, dir string, m *v1.Manifest) {
			data, err := os.ReadFile(blobOf(dir, m.Layers[1].Digest))
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, blobOf(dir, m.Layers[1].Digest), data[:len(data)/2])
		}, "is damaged: its digest is"},
		{"one byte is wrong", func(t *testing.T, dir string, m *v1.Manifest) {
			data, err := os.ReadFile(blobOf(dir, m.Layers[1].Digest))
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2] ^= 1
			overwrite(t, blobOf(dir, m.Layers[1].Digest), data)
		}, "is damaged: its digest is"},
		{"empty layer file", func(t *testing.T, dir string, m *v1.Manifest) {
			overwrite(t, blobOf(dir, m.Layers[1].Digest), nil)
		}, "tampered"},
		{"missing layer", func(t *testing.T, dir string, m *v1.Manifest) {
			if err := os.Remove(blobOf(dir, m.Layers[1].Digest)); err != nil {
				t.Fatal(err)
			}
		}, "no such file"},
		{"other config", func(t *testing.T, dir string, m *v1.Manifest) {
			overwrite(t, blobOf(dir, m.Config.Digest), []byte("{}"))
		}, "damaged"},
		{"no index", func(t *testing.T, dir string, _ *v1.Manifest) {
			overwrite(t, filepath.Join(dir, "index.json"), []byte("no"))
		}, "parse index.json"},
		{"layer is a link out of the layout", func(t *testing.T, dir string, m *v1.Manifest) {
			file := blobOf(dir, m.Layers[1].Digest)
			if err := errors.Join(os.Remove(file), os.Symlink("/etc/passwd", file)); err != nil {
				t.Fatal(err)
			}
		}, "escapes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t)
			_, err := s.Pull(t.Context(), damage(tt.change), amd64())
			if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("pull: %v, want an error with %q", err, tt.wantErr)
			}
			images, err := s.Images()
			if err != nil || len(images) != 0 {
				t.Errorf("images = %v, %v, want none", images, err)
			}
			if _, err := s.GC(t.Context(), keep()); err != nil {
				t.Error(err)
			}
			checkEmpty(t, s)
		})
	}
}

func checkEmpty(t *testing.T, s *Store) {
	t.Helper()
	for _, dir := range []string{"layers/sha256", "tmp", "configs/sha256"} {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil || len(entries) != 0 {
			t.Errorf("%s has %v, %v, want nothing", dir, entries, err)
		}
	}
}

func TestPullErrors(t *testing.T) {
	layertest.NeedRoot(t)
	ref := serve(t, twoLayers(t))
	multi := writeLayout(t, twoLayers(t), "v1", "v2")
	for _, tt := range []struct{ ref, wantErr string }{
		{ref + "-missing", "check the name and the tag"},
		{"Not/Valid:!", "image name"},
		{"oci:/does/not/exist", "no such file"},
		{"oci:", "no path"},
		{multi, `add one of their tags: ["v1" "v2"]`},
		{multi + ":v3", `no tag "v3"`},
		{"/etc/passwd", "not a tar file"},
		{t.TempDir(), "not an OCI image layout"},
	} {
		if _, err := openStore(t).Pull(t.Context(), tt.ref, amd64()); err == nil || !strings.Contains(err.Error(), tt.wantErr) {
			t.Errorf("pull %q: %v, want an error with %q", tt.ref, err, tt.wantErr)
		}
	}
	if _, err := openStore(t).Pull(t.Context(), ref, PullOptions{Arch: "arm64"}); err == nil || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("pull for another architecture: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := openStore(t).Pull(ctx, ref, amd64()); !errors.Is(err, context.Canceled) {
		t.Errorf("pull after cancel: %v, want %v", err, context.Canceled)
	}
}

func TestPullAtOnce(t *testing.T) {
	layertest.NeedRoot(t)
	ref := serve(t, twoLayers(t))
	s := openStore(t)
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			_, err := s.Pull(t.Context(), ref, amd64())
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	img, err := s.Get(ref)
	if err != nil {
		t.Fatal(err)
	}
	checkMount(t, s, img)
}

func keep(dirs ...string) func() ([]string, error) {
	return func() ([]string, error) { return dirs, nil }
}

func TestGC(t *testing.T) {
	layertest.NeedRoot(t)
	s := openStore(t)
	img, err := s.Pull(t.Context(), serve(t, twoLayers(t)), amd64())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.path("tmp", "layer-left", "fs"), 0o700); err != nil {
		t.Fatal(err)
	}
	if n, err := s.GC(t.Context(), keep()); n != 0 || err != nil {
		t.Errorf("gc = %d, %v, want 0: the image is in the index", n, err)
	}
	checkMount(t, s, img)
	if _, err := s.Remove(t.Context(), img.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), img.Name); !errors.Is(err, ErrNotFound) {
		t.Errorf("second remove: %v, want %v", err, ErrNotFound)
	}
	container := t.TempDir()
	if _, err := s.Mount(img, container); err != nil {
		t.Fatal(err)
	}
	if n, err := s.GC(t.Context(), keep(t.TempDir(), container)); n != 0 || err != nil {
		t.Errorf("gc = %d, %v, want 0: the layers are in use", n, err)
	}
	release, err := s.Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.GC(ctx, keep()); !errors.Is(err, context.Canceled) {
		t.Errorf("gc while the store is held: %v, want to wait", err)
	}
	release()
	if n, err := s.GC(t.Context(), keep()); n != 2 || err != nil {
		t.Errorf("gc = %d, %v, want 2", n, err)
	}
	checkEmpty(t, s)
	if _, err := s.Mount(img, t.TempDir()); err == nil || !strings.Contains(err.Error(), "pull the image again") {
		t.Errorf("mount after gc: %v", err)
	}
}

// TestImpliedLayer has the same layer above two different ones, of which it
// takes the mode of a directory.
func TestImpliedLayer(t *testing.T) {
	layertest.NeedRoot(t)
	s := openStore(t)
	upper := layertest.Tar(t, layertest.Entry(tar.TypeReg, "d/f"))
	for _, perm := range []int64{0o711, 0o1777} {
		lower := layertest.Tar(t, layertest.Entry(tar.TypeDir, "d", layertest.Mode(perm)))
		img, err := s.Pull(t.Context(), writeLayout(t, build(t, lower, upper), "v1"), amd64())
		if err != nil {
			t.Fatal(err)
		}
		if st := lstat(t, filepath.Join(s.layerDir(img.Layers[1].Key), "d")); int64(st.Mode&0o7777) != perm {
			t.Errorf("mode of d = %o, want %o", st.Mode&0o7777, perm)
		}
	}
	alone, err := s.Pull(t.Context(), writeLayout(t, build(t, upper), "v1"), amd64())
	if err != nil {
		t.Fatal(err)
	}
	if st := lstat(t, filepath.Join(s.layerDir(alone.Layers[0].Key), "d")); st.Mode&0o7777 != 0o755 {
		t.Errorf("mode of d alone = %o, want 755", st.Mode&0o7777)
	}
}

// TestManyLayers mounts as many layers as an image may have.
func TestManyLayers(t *testing.T) {
	layertest.NeedRoot(t)
	s := NewStore(filepath.Join(t.TempDir(), `with:colon,comma and\backslash`))
	img := Image{Name: "many"}
	for i := range maxLayers {
		key := digestOf([]byte{byte(i)})
		img.Layers = append(img.Layers, Layer{DiffID: key, Key: key})
		if err := os.MkdirAll(filepath.Join(s.layerDir(key), fmt.Sprint(i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	files := mountAndList(t, s, img, t.TempDir())
	if len(files) != maxLayers+1 {
		t.Errorf("%d files, want %d and the root", len(files), maxLayers)
	}
}

func TestEmptyImage(t *testing.T) {
	layertest.NeedRoot(t)
	s := openStore(t)
	img, err := s.Pull(t.Context(), writeLayout(t, build(t), "v1"), amd64())
	if err != nil {
		t.Fatal(err)
	}
	if files := mountAndList(t, s, img, t.TempDir()); len(files) != 1 {
		t.Errorf("files %q, want only the root", files)
	}
}

func TestParseReference(t *testing.T) {
	dir := t.TempDir()
	colon := filepath.Join(dir, "a:b")
	if err := os.Mkdir(colon, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ in, name, tag string }{
		{"busybox", "docker.io/library/busybox:latest", ""},
		{"docker.io/busybox:1", "docker.io/library/busybox:1", ""},
		{"quay.io/a/b@sha256:" + strings.Repeat("a", 64), "quay.io/a/b@sha256:" + strings.Repeat("a", 64), ""},
		{"localhost:5000/a", "localhost:5000/a:latest", ""},
		{"oci:" + dir, "oci:" + dir, ""},
		{"oci:" + dir + ":tag", "oci:" + dir + ":tag", "tag"},
		{colon, "oci:" + colon, ""},
	} {
		got, err := parseReference(tt.in)
		if err != nil || got.name != tt.name || got.tag != tt.tag {
			t.Errorf("parse %q = name %q tag %q, %v; want %q %q", tt.in, got.name, got.tag, err, tt.name, tt.tag)
		}
	}
}

func TestNameInUpperCase(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"ALPINE", `image name "ALPINE": it has to be in lower case, but for the tag: alpine`},
		{"quay.io/Foo/bar:V1", `image name "quay.io/Foo/bar:V1": it has to be in lower case, but for the tag: quay.io/foo/bar:V1`},
		{"A b", `image name "A b": could not parse reference: A b`},
	} {
		if _, err := parseReference(tt.in); err == nil || err.Error() != tt.want {
			t.Errorf("%s: %v, want %s", tt.in, err, tt.want)
		}
	}
}

func TestCopyDir(t *testing.T) {
	layertest.NeedRoot(t)
	s := openStore(t)
	img, err := s.Pull(t.Context(), writeLayout(t, build(t,
		layertest.Tar(t, layertest.Entry(tar.TypeDir, "v", layertest.Mode(0o710), layertest.Owner(5, 6)), layertest.Entry(tar.TypeReg, "v/gone"), layertest.Entry(tar.TypeReg, "v/low"),
			layertest.Entry(tar.TypeDir, "v/d"), layertest.Entry(tar.TypeReg, "v/d/hidden"), layertest.Entry(tar.TypeSymlink, "link", layertest.Link("v"))),
		layertest.Tar(t, layertest.Entry(tar.TypeDir, "v", layertest.Mode(0o710), layertest.Owner(5, 6)), layertest.Entry(tar.TypeReg, "v/.wh.gone"), layertest.Entry(tar.TypeReg, "v/high", layertest.Mode(0o4755), layertest.Owner(7, 8)),
			layertest.Entry(tar.TypeDir, "v/d"), layertest.Entry(tar.TypeReg, "v/d/.wh..wh..opq"), layertest.Entry(tar.TypeSymlink, "v/d/s", layertest.Link("/etc")), layertest.Entry(tar.TypeFifo, "v/d/p")),
	), "v1"), amd64())
	if err != nil {
		t.Fatal(err)
	}
	dst := filepath.Join(t.TempDir(), "copy")
	if err := os.Mkdir(dst, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Tree(img, "").CopyDir("/link/", dst); err != nil {
		t.Fatal(err)
	}
	var found []string
	err = filepath.WalkDir(dst, func(p string, _ os.DirEntry, err error) error {
		st := lstat(t, p)
		if got := time.Unix(st.Mtim.Unix()); !got.Equal(layertest.When()) {
			t.Errorf("%s: time %v, want %v", p, got, layertest.When())
		}
		found = append(found, fmt.Sprintf("%s %o %d:%d", strings.TrimPrefix(p, dst), st.Mode, st.Uid, st.Gid))
		return err
	})
	want := []string{" 40710 5:6", "/d 40755 0:0", "/d/p 10644 0:0", "/d/s 120777 0:0", "/high 104755 7:8", "/low 100644 0:0"}
	if diff := cmp.Diff(want, found); err != nil || diff != "" {
		t.Errorf("copied: %v, %s", err, diff)
	}
	for _, name := range []string{"/none", "/v/gone", "/v/low", "/"} {
		if err := s.Tree(img, "").CopyDir(name, dst); err == nil {
			t.Errorf("copy %s: no error", name)
		}
	}
}

func lstat(t testing.TB, p string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		t.Fatalf("lstat %s: %v", p, err)
	}
	return st
}
