package install

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestApplyKeepsOwner: the file stays that of who has it, and so does its mode.
func TestApplyKeepsOwner(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give a file away")
	}
	c := Containerd{Config: configure(t, debian)}
	if err := os.Chown(c.Config, 12, 34); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(c.Config, 0o640); err != nil {
		t.Fatal(err)
	}
	ch, err := c.Install(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Apply(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{c.Config, c.Config + backupSuffix} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		sys := st.Sys().(*syscall.Stat_t)
		if sys.Uid != 12 || sys.Gid != 34 || st.Mode() != fs.FileMode(0o640) {
			t.Errorf("%s: %d:%d, %v; want 12:34 and 0640", path, sys.Uid, sys.Gid, st.Mode())
		}
	}
}

// TestApplyAfterEdit: what somebody writes between the plan and its execution is
// not lost.
func TestApplyAfterEdit(t *testing.T) {
	t.Parallel()
	const edited = debian + "[debug]\n"
	for _, config := range []string{debian, "none"} {
		c := Containerd{Config: configure(t, config), Program: program(t, "v2.0.0")}
		ch, err := c.Install(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.Config, []byte(edited), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ch.Apply(); err == nil || !strings.Contains(err.Error(), "edited") {
			t.Errorf("%v; want a refusal", err)
		}
		if text, err := os.ReadFile(c.Config); err != nil || string(text) != edited {
			t.Errorf("the edit is lost: %v, %q", err, text)
		}
		if left, err := os.ReadDir(filepath.Dir(c.Config)); err != nil || len(left) != 1 {
			t.Errorf("left beside it: %v, %v", left, err)
		}
	}
}
