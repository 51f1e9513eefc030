package sandbox_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/sandboxtest"
	"google.golang.org/grpc/codes"
)

// onDisk makes a bundle of a container whose root file system is in a file.
func (r *rig) onDisk(t *testing.T, id string) sandbox.ContainerOptions {
	t.Helper()
	image := filepath.Join(r.Rig.Dir, "image-"+id)
	if err := os.WriteFile(image, []byte("file system"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := r.bundle(t, id, func(s *specs.Spec) { s.Root.Readonly = true })
	o.Rootfs = []sandbox.RootfsMount{{Type: "ext4", Source: image, Options: []string{"loop"}}}
	return o
}

// TestDisksGoWithTheContainer: what is attached for a container is detached with
// it, in whatever way it ends.
func TestDisksGoWithTheContainer(t *testing.T) {
	t.Parallel()
	r := newGuestRig(t, sandboxtest.Long, sandboxtest.Long, nil)
	if err := r.Boot(t.Context(), sandbox.BootOptions{}); err != nil {
		t.Fatal(err)
	}
	want := func(what string, n int) {
		t.Helper()
		if got := r.Machine.Disks(); len(got) != n {
			t.Errorf("%s: disks %q, want %d", what, got, n)
		}
	}
	c, err := r.Create(t.Context(), r.onDisk(t, "c"))
	if err != nil {
		t.Fatal(err)
	}
	want("created", 1)
	broken := r.onDisk(t, "broken")
	broken.Rootfs[0].Options = []string{"loop", "journal_path=/dev/sda"}
	if _, err := r.Create(t.Context(), broken); err == nil || !strings.Contains(err.Error(), "journal_path") {
		t.Errorf("got %v, want an error with journal_path", err)
	}
	want("refused", 1)
	r.guest.Faults = map[string]sandboxtest.Fault{
		"CreateContainer": func(_ *sandboxtest.Guest, c *sandboxtest.Call) { c.Fail(codes.Internal, "cannot mount") },
	}
	if _, err := r.Create(t.Context(), r.onDisk(t, "failed")); err == nil || !strings.Contains(err.Error(), "cannot mount") {
		t.Errorf("got %v, want an error that it cannot be mounted", err)
	}
	want("failed", 1)
	if err := c.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	want("deleted", 0)
}

// TestDisksOfADeadMachine: there is nothing to detach, and nothing hangs.
func TestDisksOfADeadMachine(t *testing.T) {
	t.Parallel()
	r := newGuestRig(t, sandboxtest.Long, sandboxtest.Long, nil)
	if err := r.Boot(t.Context(), sandbox.BootOptions{}); err != nil {
		t.Fatal(err)
	}
	c, err := r.Create(t.Context(), r.onDisk(t, "c"))
	if err != nil {
		t.Fatal(err)
	}
	r.Machine.End(sandboxtest.ErrKilled)
	<-r.Dead()
	if err := sandboxtest.Within(t, "Delete", func() error { return c.Delete(t.Context()) }); err != nil {
		t.Error(err)
	}
}
