package vmmtest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/seed-efd44b36/kata/internal/supervise"
	"github.com/seed-efd44b36/kata/internal/vmm"
)

// testVirtioFS boots a guest whose share is served by virtiofsd.
func testVirtioFS(t *testing.T, d Driver) {
	if !d.Capabilities.VirtioFS || d.Virtiofsd == "" {
		t.Skip("the driver has no virtio-fs, or virtiofsd is not installed")
	}
	c := d.config(t)
	shared := sharedDir(t)
	socket := filepath.Join(c.Dir, "virtiofsd.sock")
	server, err := supervise.Start(t.Context(), supervise.Command{
		Path:   d.Virtiofsd,
		Args:   []string{"--socket-path=" + socket, "-o", "source=" + shared, "-o", "sandbox=chroot", "-o", "cache=auto"},
		Stderr: 4096,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Kill()
		<-server.Done()
		if t.Failed() {
			t.Logf("virtiofsd: %q", server.Stderr())
		}
	})
	until(t, "virtiofsd listens", func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
	c.Share = vmm.Share{Tag: "kata", Socket: socket}
	if err := os.WriteFile(filepath.Join(shared, "from-host"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, g := d.boot(t, c)
	if d.Check != nil {
		t.Run("Check", func(t *testing.T) { d.Check(t, m, c) })
	}
	g.ask(t, "mount", "virtiofs", "kata", "/mnt")
	if got := g.ask(t, "read", "/mnt/from-host"); got != "text" {
		t.Errorf("the guest reads %q, want text", got)
	}
	g.ask(t, "write", "/mnt/from-guest", "more")
	if got, err := os.ReadFile(filepath.Join(shared, "from-guest")); err != nil || string(got) != "more" {
		t.Errorf("the host reads %q, %v; want more", got, err)
	}
	g.ask(t, "mkfifo", "/mnt/fifo")
	if info, err := os.Lstat(filepath.Join(shared, "fifo")); err != nil || info.Mode().Type() != os.ModeNamedPipe {
		t.Errorf("the guest's fifo is none on the host: %v, %v", info, err)
	}
	if exit := m.Kill(deadline(t)); exit.Err != nil {
		t.Errorf("Kill: %v", exit.Err)
	}
}
