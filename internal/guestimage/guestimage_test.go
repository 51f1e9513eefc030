package guestimage

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func ensure(t *testing.T, b *Builder) Image {
	t.Helper()
	img, err := b.Ensure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// countSteps makes b count what it reports as slow.
func countSteps(b *Builder) *int {
	n := 0
	b.Progress = func(string) { n++ }
	return &n
}

func TestEnsure(t *testing.T) {
	b := testBuilder(t)
	img := ensure(t, b)
	if img.Kernel.Version != testVersion || img.Kernel.Source != "configured" || img.Kernel.ModulesDir != b.Modules || img.Kernel.Microvm {
		t.Errorf("kernel is %+v", img.Kernel)
	}
	vmlinux, err := os.ReadFile(img.Kernel.VMLinux)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inspectKernel(vmlinux); err != nil {
		t.Errorf("kernel in the cache: %v", err)
	}
	if full := len(testKernel(t, "")); len(vmlinux) >= full {
		t.Errorf("kernel in the cache has %d bytes, not less than %d", len(vmlinux), full)
	}
	data, err := os.ReadFile(img.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := readCpio(data)
	if err != nil {
		t.Fatal(err)
	}
	var list string
	for _, e := range entries {
		if e.Name == "etc/kata/modules" {
			list = e.Data
		}
	}
	dir := "/lib/modules/" + testVersion
	want := strings.ReplaceAll(`boot virtio DIR/virtio.ko
boot virtio_ring DIR/virtio_ring.ko virtio
boot virtio_console DIR/virtio_console.ko virtio virtio_ring
boot 9pnet DIR/9pnet.ko
boot 9pnet_virtio DIR/9pnet_virtio.ko 9pnet virtio virtio_ring
boot 9p DIR/9p.ko 9pnet
net virtio_net DIR/virtio_net.ko virtio virtio_ring
lazy overlay DIR/overlay.ko
lazy jbd2 DIR/jbd2.ko
lazy crc32c_generic DIR/crc32c_generic.ko
lazy ext4 DIR/ext4.ko jbd2 crc32c_generic
`, "DIR", dir)
	if diff := cmp.Diff(list, want); diff != "" {
		t.Errorf("module list differs (-got +want):\n%s", diff)
	}

	images, err := List(b.CacheDir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(images, []Image{img}); diff != "" {
		t.Errorf("List differs (-got +want):\n%s", diff)
	}
}

func TestEnsureTwiceDoesNothing(t *testing.T) {
	b := testBuilder(t)
	first := ensure(t, b)
	steps := countSteps(b)
	if diff := cmp.Diff(ensure(t, b), first); diff != "" {
		t.Errorf("second image differs (-got +want):\n%s", diff)
	}
	if *steps != 0 {
		t.Errorf("%d steps, want none", *steps)
	}
}

func TestEnsureAfterChange(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, b *Builder, img Image)
		same   bool // the image has the same content as before
	}{
		{"agent", func(t *testing.T, b *Builder, _ Image) {
			data, err := os.ReadFile(b.Agent)
			if err != nil {
				t.Fatal(err)
			}
			write(t, append(data, "new"...), b.Agent)
		}, false},
		{"module", func(t *testing.T, b *Builder, _ Image) {
			write(t, testModule(t, "depends=", "license=new"), b.Modules, "kernel/fs/overlayfs/overlay.ko")
		}, false},
		{"kernel", func(t *testing.T, b *Builder, _ Image) {
			write(t, testBzImage(gzipped(t, testKernel(t, "virtio_mmio.device\x00"))), b.Kernel)
		}, false},
		{"kernel moved", func(t *testing.T, b *Builder, _ Image) {
			if err := os.Rename(b.Kernel, b.Kernel+"2"); err != nil {
				t.Fatal(err)
			}
			b.Kernel += "2"
		}, true},
		{"initrd cut by a crash", func(t *testing.T, _ *Builder, img Image) {
			if err := os.Truncate(img.Initrd, 100); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"kernel cut by a crash", func(t *testing.T, _ *Builder, img Image) {
			if err := os.Truncate(img.Kernel.VMLinux, 0); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"kernel gone from the cache", func(t *testing.T, b *Builder, _ Image) {
			if err := os.RemoveAll(filepath.Join(b.CacheDir, "kernel")); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"memo is rubbish", func(t *testing.T, b *Builder, _ Image) {
			write(t, []byte(`{"key":"../../etc"}`), b.CacheDir, "memo", b.memoID()+".json")
		}, true},
		{"left by a crash", func(t *testing.T, b *Builder, img Image) {
			write(t, nil, b.CacheDir, tmpPrefix+"1", "initrd")
			write(t, nil, b.CacheDir, tmpPrefix+b.memoID()+".json")
			if err := os.Remove(img.Initrd); err != nil {
				t.Fatal(err)
			}
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := testBuilder(t)
			first := ensure(t, b)
			tt.change(t, b, first)
			second := ensure(t, b)
			if same := second.Key == first.Key; same != tt.same {
				t.Errorf("same key: %v, want %v", same, tt.same)
			}
			for _, f := range []string{second.Initrd, second.Kernel.VMLinux} {
				if st, err := os.Stat(f); err != nil || st.Size() < 1000 {
					t.Errorf("%s is not complete", f)
				}
			}
			if left, _ := filepath.Glob(filepath.Join(b.CacheDir, tmpPrefix+"*")); left != nil {
				t.Errorf("left behind: %v", left)
			}
			steps := countSteps(b)
			if ensure(t, b); *steps != 0 {
				t.Errorf("a further Ensure took %d steps, want none", *steps)
			}
		})
	}
}

func TestEnsureConcurrently(t *testing.T) {
	b := testBuilder(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			img, err := b.Ensure(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			if data, err := os.ReadFile(img.Initrd); err != nil {
				t.Error(err)
			} else if _, err := readCpio(data); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if images, err := List(b.CacheDir); err != nil || len(images) != 1 {
		t.Errorf("%d images, error %v, want one", len(images), err)
	}
}

func TestEnsureWaitsNoLongerThanItsContext(t *testing.T) {
	b := testBuilder(t)
	unlock, err := cache{dir: b.CacheDir}.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Ensure(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

func TestEnsureErrors(t *testing.T) {
	missing := func(t *testing.T, b *Builder) { b.Kernel += "-not-there" }
	kernel := func(data func(t *testing.T) []byte) func(*testing.T, *Builder) {
		return func(t *testing.T, b *Builder) { write(t, data(t), b.Kernel) }
	}
	text := func(s string) func(*testing.T) []byte { return func(*testing.T) []byte { return []byte(s) } }
	tests := []struct {
		name  string
		spoil func(t *testing.T, b *Builder)
		kind  error
		want  string
	}{
		{"kernel missing", missing, ErrNoKernel, "no such file"},
		{"kernel is a text", kernel(text("#!/bin/sh\n")), ErrNoKernel, "not an x86-64 Linux kernel"},
		{"kernel is empty", kernel(text("")), ErrNoKernel, "not an x86-64 Linux kernel"},
		{"kernel is a program", kernel(func(t *testing.T) []byte { return elfFile{typ: 2}.bytes(t) }), ErrNoKernel, "not an x86-64 Linux kernel"},
		{"kernel for arm64", kernel(func(t *testing.T) []byte { return elfFile{typ: 2, machine: 183}.bytes(t) }), ErrNoKernel, "EM_AARCH64"},
		{"kernel without PVH", kernel(func(t *testing.T) []byte {
			return bytes.ReplaceAll(testKernel(t, ""), testNote(notePVH), testNote(2))
		}), ErrNoKernel, "CONFIG_PVH"},
		{"kernel cut", kernel(func(t *testing.T) []byte {
			image := testBzImage(gzipped(t, testKernel(t, "")))
			return image[:len(image)-10]
		}), ErrNoKernel, "truncated"},
		{"unknown compression", kernel(func(*testing.T) []byte { return testBzImage([]byte("rubbish_rubbish_\x10\x00\x00\x00")) }), ErrNoKernel, "unknown compression"},
		{"unsupported compression", kernel(func(*testing.T) []byte { return testBzImage([]byte("BZh9rubbish_rubbish_\x10\x00\x00\x00")) }), ErrNoKernel, "bzip2"},
		{"module missing", func(t *testing.T, b *Builder) {
			if err := os.Remove(filepath.Join(b.Modules, "kernel/fs/9p/9p.ko")); err != nil {
				t.Fatal(err)
			}
		}, ErrNoKernel, "has no module 9p in "},
		{"modules missing", func(t *testing.T, b *Builder) { b.Modules += "-not-there" }, ErrNoKernel, "no such file"},
		{"agent missing", func(t *testing.T, b *Builder) { b.Agent += "-not-there" }, ErrNoAgent, "no such file"},
		{"agent is a script", func(t *testing.T, b *Builder) { write(t, []byte("#!/bin/sh"), b.Agent) }, ErrNoAgent, "not a program"},
		{"agent is dynamic", func(t *testing.T, b *Builder) {
			write(t, elfFile{typ: 2, progs: []testProg{{3, []byte("/lib64/ld.so")}}}.bytes(t), b.Agent)
		}, ErrNoAgent, "CGO_ENABLED=0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := testBuilder(t)
			tt.spoil(t, b)
			_, err := b.Ensure(t.Context())
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want %v with %q", err, tt.kind, tt.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error has several lines: %v", err)
			}
			// A failure is not remembered.
			if images, err := List(b.CacheDir); err != nil || len(images) != 0 {
				t.Errorf("%d images, error %v, want none", len(images), err)
			}
		})
	}
}

func TestPrune(t *testing.T) {
	b := testBuilder(t)
	old := ensure(t, b)
	past := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(filepath.Join(b.CacheDir, "image", old.Key, "image.json"), past, past); err != nil {
		t.Fatal(err)
	}
	write(t, testBzImage(gzipped(t, testKernel(t, "other"))), b.Kernel)
	img := ensure(t, b)
	c := cache{dir: b.CacheDir}
	if err := c.prune(24 * time.Hour); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Ensure(t.Context()); err != nil || got != img {
		t.Errorf("image %+v, error %v, want %+v", got, err, img)
	}
	for _, f := range []string{old.Initrd, old.Kernel.VMLinux} {
		if exists(f) {
			t.Errorf("%s is still there", f)
		}
	}
	if err := c.prune(0); err != nil {
		t.Fatal(err)
	}
	if images, err := List(b.CacheDir); err != nil || len(images) != 0 {
		t.Errorf("%d images, error %v, want none", len(images), err)
	}
	if memos := c.entries("memo"); len(memos) != 0 {
		t.Errorf("memos left: %v", memos)
	}
}

func TestListWithoutCache(t *testing.T) {
	images, err := List(filepath.Join(t.TempDir(), "not-there"))
	if err != nil || images != nil {
		t.Errorf("images %v, error %v, want none", images, err)
	}
}
