package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := script("good", `echo "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"`)
	t.Run("configured", func(t *testing.T) {
		path, version, err := Find(t.Context(), good)
		if path != good || version != "7.2.22" || err != nil {
			t.Errorf("Find() = %q, %q, %v", path, version, err)
		}
	})
	t.Run("from PATH", func(t *testing.T) {
		t.Setenv("PATH", dir)
		if _, _, err := Find(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "install qemu-system-x86") {
			t.Errorf("Find() = %v, want a remedy", err)
		}
		if err := os.Symlink(good, filepath.Join(dir, program)); err != nil {
			t.Fatal(err)
		}
		if path, _, err := Find(t.Context(), ""); err != nil || path != filepath.Join(dir, program) {
			t.Errorf("Find() = %q, %v", path, err)
		}
	})
	for _, test := range []struct{ name, path, want string }{
		{"none", "/no/such/qemu", "/no/such/qemu"},
		{"another program", script("other", "echo hello"), "does not say that it is QEMU"},
		{"a failure", script("fails", "exit 1"), "exit status 1"},
		{"too old", script("old", "echo QEMU emulator version 5.2.0"), "5.2.0: 7.2 or newer is needed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, _, err := Find(t.Context(), test.path); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Find() = %v, want %q", err, test.want)
			}
		})
	}
}

func TestParseVersion(t *testing.T) {
	for _, test := range []struct {
		text, want string
		parts      version
		ok         bool
	}{
		{"QEMU emulator version 7.2.22 (Debian)", "7.2.22", version{7, 2}, true},
		{"QEMU emulator version 10.0", "10.0", version{10, 0}, true},
		{"QEMU emulator version 9.1.50.", "9.1.50", version{9, 1}, true},
		{"QEMU emulator version 99999999999999999999.1", "", version{}, false},
		{"qemu-img version 7.2.22", "", version{}, false},
		{"", "", version{}, false},
	} {
		text, parts, ok := parseVersion(test.text)
		if text != test.want || parts != test.parts || ok != test.ok {
			t.Errorf("parseVersion(%q) = %q, %v, %t; want %q, %v, %t", test.text, text, parts, ok, test.want, test.parts, test.ok)
		}
	}
}
