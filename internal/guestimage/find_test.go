package guestimage

import (
	"errors"
	"testing"
)

func TestFind(t *testing.T) {
	b := testBuilder(t)
	before, err := b.Find()
	if err != nil {
		t.Fatal(err)
	}
	if before.Path != b.Kernel || before.Source != "configured" || before.Initrd != "" {
		t.Errorf("before Ensure: %+v", before)
	}
	img := ensure(t, b)
	after, err := b.Find()
	if err != nil {
		t.Fatal(err)
	}
	if want := (Found{img.Kernel.VMLinux, testVersion, "configured", img.Initrd}); after != want {
		t.Errorf("after Ensure: %+v, want %+v", after, want)
	}
	b.Kernel += "-not-there"
	if _, err := b.Find(); !errors.Is(err, ErrNoKernel) {
		t.Errorf("error %v, want %v", err, ErrNoKernel)
	}
	b.Kernel = ""
	write(t, testKernel(t, ""), b.CacheDir, "kernel/tuned/vmlinux")
	if k, err := b.Find(); err != nil || k.Source != "tuned" {
		t.Errorf("kernel %+v, error %v, want the tuned one", k, err)
	}
	if exists(b.CacheDir + "/kernel/debian") {
		t.Error("Find has fetched something")
	}
}
