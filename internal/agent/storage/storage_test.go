package storage

import (
	"errors"
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
