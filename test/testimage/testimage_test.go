package testimage

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func open(t *testing.T, dir string) v1.Image {
	t.Helper()
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 {
		t.Fatalf("%d images in the layout, want 1", len(manifest.Manifests))
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func TestBusybox(t *testing.T) {
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("busybox is not installed")
	}
	dir := t.TempDir()
	layoutDir, err := Build(t.Context(), dir, "busybox")
	if err != nil {
		t.Fatal(err)
	}
	image := open(t, layoutDir)
	if err := validate.Image(image); err != nil {
		t.Error(err)
	}

	content := mutate.Extract(image)
	defer content.Close()
	got := make(map[string]tar.Header)
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := got[h.Name]; twice {
			t.Errorf("%s is there twice", h.Name)
		}
		got[strings.TrimSuffix(h.Name, "/")] = *h
	}
	for name, want := range map[string]tar.Header{
		"bin/busybox": {Typeflag: tar.TypeReg, Mode: 0o755},
		"bin/sh":      {Typeflag: tar.TypeLink, Mode: 0o755},
		"tmp":         {Typeflag: tar.TypeDir, Mode: 0o1777},
		"home/kata":   {Typeflag: tar.TypeDir, Mode: 0o755, Uid: 1000},
		"etc/passwd":  {Typeflag: tar.TypeReg, Mode: 0o644},
	} {
		h, ok := got[name]
		if !ok || h.Typeflag != want.Typeflag || h.Mode != want.Mode || h.Uid != want.Uid {
			t.Errorf("%s: got %+v (%v), want %+v", name, h, ok, want)
		}
	}

	// The same again, whole: the same bytes.
	other, err := Build(t.Context(), t.TempDir(), "busybox")
	if err != nil {
		t.Fatal(err)
	}
	a, errA := image.Digest()
	b, errB := open(t, other).Digest()
	if a != b || errA != nil || errB != nil {
		t.Errorf("digests %s (%v) and %s (%v) differ", a, errA, b, errB)
	}
}

func TestBuildIsDoneOnce(t *testing.T) {
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("busybox is not installed")
	}
	dir := t.TempDir()
	build := func() string {
		t.Helper()
		layoutDir, err := Build(t.Context(), dir, "busybox")
		if err != nil {
			t.Fatal(err)
		}
		return layoutDir
	}
	marker := filepath.Join(build(), "marker")
	if err := os.WriteFile(marker, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	build()
	if _, err := os.Stat(marker); err != nil {
		t.Error("an image that was current was built again")
	}
	if err := os.WriteFile(filepath.Join(dir, "busybox.key"), []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	build()
	if _, err := os.Stat(marker); err == nil {
		t.Error("an image that was not current was not built again")
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v (%v)", left, err)
	}
}

func TestUnknownImage(t *testing.T) {
	_, err := Build(t.Context(), t.TempDir(), "fedora")
	want := "test image fedora: there is no such recipe; there are: busybox, debian, nginx, pause"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}
