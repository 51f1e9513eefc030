package guestimage

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestKernelVersion(t *testing.T) {
	tests := []struct{ name, image, want string }{
		{"plain", "xxLinux version 6.1.0-56-amd64 (debian-kernel", "6.1.0-56-amd64"},
		{"after a format", "Linux version %s (%s)Linux version 5.4 (", "5.4"},
		{"at the end", "Linux version 6", ""},
		{"with a slash", "Linux version 6/../.. (x", ""},
		{"too long", "Linux version 6" + strings.Repeat("1", 70) + " (", ""},
		{"none", "Linux", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := kernelVersion([]byte(tt.image)); got != tt.want {
				t.Errorf("version %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCompareVersions(t *testing.T) {
	sorted := []string{"5.10.0-9-amd64", "5.10.0-30-amd64", "6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-056b-amd64", "6.12.1"}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := compareVersions(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("compareVersions(%q, %q) = %d", a, b, got)
			}
		}
	}
}

func TestHostKernels(t *testing.T) {
	dir := t.TempDir()
	boot, modules := filepath.Join(dir, "boot"), filepath.Join(dir, "lib/modules")
	for _, v := range []string{"6.1.0-9", "6.1.0-10", "5.10.1"} {
		write(t, nil, boot, "vmlinuz-"+v)
		write(t, nil, modules, v, "kernel/x")
	}
	write(t, nil, boot, "vmlinuz-7.0-without-modules")
	write(t, nil, boot, "config-6.1.0-9")
	for running, want := range map[string][]string{
		"":        {"6.1.0-10", "6.1.0-9", "5.10.1"},
		"5.10.1":  {"5.10.1", "6.1.0-10", "6.1.0-9"},
		"6.1.0-9": {"6.1.0-9", "6.1.0-10", "5.10.1"},
		"4.0":     {"6.1.0-10", "6.1.0-9", "5.10.1"},
	} {
		var got []string
		for _, c := range hostKernels(boot, modules, running) {
			got = append(got, filepath.Base(c.modules))
			if c.image != filepath.Join(boot, "vmlinuz-"+filepath.Base(c.modules)) {
				t.Errorf("image %s goes with modules %s", c.image, c.modules)
			}
		}
		if diff := cmp.Diff(got, want); diff != "" {
			t.Errorf("running %q (-got +want):\n%s", running, diff)
		}
	}
}

func TestModulesBesideKernel(t *testing.T) {
	for _, where := range []string{"lib/modules", "boot/lib/modules"} {
		b := testBuilder(t)
		root := filepath.Dir(filepath.Dir(b.Kernel))
		target := filepath.Join(root, where, testVersion)
		if target != b.Modules {
			if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(b.Modules, target); err != nil {
				t.Fatal(err)
			}
		}
		b.Modules = ""
		if got := ensure(t, b).Kernel.ModulesDir; got != target {
			t.Errorf("modules %q, want %q", got, target)
		}
	}
}

func TestTunedKernelIsFirst(t *testing.T) {
	b := testBuilder(t)
	b.Kernel, b.Modules = "", ""
	write(t, testKernel(t, "virtio_mmio.device\x00"), b.CacheDir, "kernel/tuned/vmlinux")
	img := ensure(t, b)
	if k := img.Kernel; k.Source != "tuned" || !k.Microvm || k.ModulesDir != "" {
		t.Errorf("kernel is %+v", k)
	}
	write(t, testKernel(t, "another virtio_mmio.device\x00"), b.CacheDir, "kernel/tuned/vmlinux")
	if again := ensure(t, b); again.Key == img.Key {
		t.Error("a new tuned kernel was not noticed")
	}
}

func TestDependency(t *testing.T) {
	tests := []struct{ name, out, want string }{
		{"debian", "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n", "linux-image-6.1.0-56-amd64"},
		{"others first", "x\n  PreDepends: linux-image-1\n  Depends: libc6\n  Depends: linux-image-2\n", "linux-image-2"},
		{"path", "x\n  Depends: linux-image-../../x\n", ""},
		{"nothing", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := dependency(tt.out); got != tt.want {
				t.Errorf("package %q, want %q", got, tt.want)
			}
		})
	}
}

func TestUnpackTar(t *testing.T) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, typ := range map[string]byte{
		"./boot/vmlinuz-6.1":                               tar.TypeReg,
		"./boot/System.map-6.1":                            tar.TypeReg,
		"./lib/modules/6.1/modules.builtin":                tar.TypeReg,
		"./lib/modules/6.1/modules.order":                  tar.TypeReg,
		"./usr/lib/modules/6.1/kernel/fs/9p/9p.ko":         tar.TypeReg,
		"./lib/modules/6.1/kernel/drivers/gpu/drm/drm.ko":  tar.TypeReg,
		"./lib/modules/6.1/kernel/../../../../outside":     tar.TypeReg,
		"./boot/vmlinuz-link":                              tar.TypeSymlink,
		"../boot/vmlinuz-outside":                          tar.TypeReg,
		"./usr/share/doc/linux-image-6.1.0-56-amd64/x.txt": tar.TypeReg,
	} {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: typ, Linkname: "/etc/passwd", Mode: 0o777}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := unpackTar(&archive, root); err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, name)
			got = append(got, rel)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{"boot/vmlinuz-6.1", "lib/modules/6.1/kernel/fs/9p/9p.ko", "lib/modules/6.1/modules.builtin"}
	slices.Sort(got)
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("files differ (-got +want):\n%s", diff)
	}
}

func TestFetchWithoutApt(t *testing.T) {
	b := testBuilder(t)
	t.Setenv("PATH", t.TempDir())
	if _, err := b.fetchDebian(t.Context(), cache{dir: b.CacheDir}); err == nil || !strings.Contains(err.Error(), "not a Debian system") {
		t.Errorf("error %v, want that this is not a Debian system", err)
	}
}

func TestFetchFailures(t *testing.T) {
	const depends = "#!/bin/sh\necho '  Depends: linux-image-6.1.0-99-test'\n"
	tests := []struct {
		name          string
		aptCache, apt string
		want          string
	}{
		{"no lists", "#!/bin/sh\necho 'E: No packages found' >&2\nexit 100\n", "", "No packages found"},
		{"unknown package", "#!/bin/sh\n", "", "apt knows no package"},
		{"no network", depends, "#!/bin/sh\necho 'E: Could not connect' >&2\nexit 100\n", "Could not connect"},
		{"nothing came", depends, "#!/bin/sh\n", "left 0 packages"},
		{"damaged", depends, "#!/bin/sh\necho rubbish > x.deb\n", "dpkg-deb"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := testBuilder(t)
			bin := t.TempDir()
			for name, script := range map[string]string{"apt-cache": tt.aptCache, "apt-get": tt.apt} {
				if err := os.Chmod(write(t, []byte(script), bin, name), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			c := cache{dir: b.CacheDir}
			unlock, err := c.lock(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer unlock()
			_, err = b.fetchDebian(t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
			if got := c.entries(); len(got) != 1 {
				t.Errorf("cache has %v, want the lock alone", got)
			}
		})
	}
}
