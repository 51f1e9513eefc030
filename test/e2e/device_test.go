//go:build integration

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/test/harness"
)

// TestDevice gives a block device of the host to containers.
func TestDevice(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, append([]byte("of the host"), make([]byte, 1<<20)...), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		// What still has it open would keep it.
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
		harness.Poll(t, device+" is free", func() bool {
			_, err := os.Stat(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
			return err != nil
		})
	})
	got := env.MustKata(t, "run", "--rm", "--network", "none", "--device", device+":/dev/xvda:rw", "--device-write-bps", device+":100m", busybox,
		"sh", "-c", "head -c 11 /dev/xvda; printf 'of a guest!' | dd of=/dev/xvda conv=notrunc 2>/dev/null")
	if got != "of the host" {
		t.Errorf("in the container: %q", got)
	}
	if b, err := os.ReadFile(file); err != nil || string(b[:11]) != "of a guest!" {
		t.Errorf("on the host: %q, %v", b[:11], err)
	}
	r := env.Kata(t, "run", "--rm", "--network", "none", "--device", device+":r", busybox, "sh", "-c", "printf x >"+device)
	if r.Code == 0 || !strings.Contains(r.Stderr, "not permitted") {
		t.Errorf("read-only: got %+v", r)
	}
}
