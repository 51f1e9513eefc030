package storage

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/module"
	"golang.org/x/sys/unix"
)

func TestOptions(t *testing.T) {
	flags, data := parseOptions([]string{"ro", "trans=virtio", "nosuid", "rw", "msize=524288"})
	if flags != unix.MS_RDONLY|unix.MS_NOSUID || data != "trans=virtio,msize=524288" {
		t.Errorf("got %#x, %q", flags, data)
	}
}

func TestTargets(t *testing.T) {
	modules, err := module.Open(t.TempDir() + "/none")
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"", "/", "/etc", "/run/kata", "/run/kata/../../etc", "/run/katana/x", "run/kata/x"} {
		err := Mount(t.Context(), modules, &agentv1.Storage{Driver: "tmpfs", Target: target})
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("target %q: %v", target, err)
		}
	}
	if err := Mount(t.Context(), modules, &agentv1.Storage{Driver: "nfs", Target: "/run/kata/x"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("driver nfs: %v", err)
	}
}

func write(t *testing.T, content string, path ...string) {
	t.Helper()
	file := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFindDisk(t *testing.T) {
	dir := t.TempDir()
	write(t, "disk-1\n", dir, "vda/serial")
	write(t, "\x00\x80\x00\x06disk-2", dir, "sda/device/vpd_pg80")
	write(t, "\x00\x80\xff\xffdisk-3  ", dir, "sdb/device/vpd_pg80") // lies about its length
	write(t, "\x00", dir, "sdc/device/vpd_pg80")
	for serial, want := range map[string]string{"disk-1": "vda", "disk-2": "sda", "disk-3": "sdb", "disk": "", "": ""} {
		if got := findDisk(dir, serial); got != want {
			t.Errorf("disk %q: got %q, want %q", serial, got, want)
		}
	}
}
