package disk

import (
	"os"
	"path/filepath"
	"testing"
)

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

func TestFind(t *testing.T) {
	dir := t.TempDir()
	write(t, "disk-1\n", dir, "vda/serial")
	write(t, "\x00\x80\x00\x06disk-2", dir, "sda/device/vpd_pg80")
	write(t, "\x00\x80\xff\xffdisk-3  ", dir, "sdb/device/vpd_pg80") // lies about its length
	write(t, "\x00", dir, "sdc/device/vpd_pg80")
	for serial, want := range map[string]string{"disk-1": "vda", "disk-2": "sda", "disk-3": "sdb", "disk": "", "": ""} {
		if got := find(dir, serial); got != want {
			t.Errorf("disk %q: got %q, want %q", serial, got, want)
		}
	}
}

func TestParseNumber(t *testing.T) {
	if a, b, err := parseNumber("8:16\n"); a != 8 || b != 16 || err != nil {
		t.Errorf("got %d, %d, %v", a, b, err)
	}
	for _, bad := range []string{"", "8", "8:", ":1", "8:x", "4096:0", "8:1048576", "-1:0"} {
		if a, b, err := parseNumber(bad); err == nil {
			t.Errorf("%q: got %d, %d", bad, a, b)
		}
	}
}
