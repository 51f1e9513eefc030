package kvm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// openKVM opens the device or skips the test.
func openKVM(t *testing.T) *os.File {
	t.Helper()
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("/dev/kvm is needed: %v", err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	return dev
}

func TestProbeGivesOneVerdictWithAReason(t *testing.T) {
	openKVM(t)
	cache := filepath.Join(t.TempDir(), "kvm.json")
	first := Probe(t.Context(), cache)
	t.Logf("usable: %t: %s", first.Usable, first.Reason)
	if first.Reason == "" {
		t.Error("the verdict has no reason")
	}
	if _, err := os.Stat(cache); err != nil {
		t.Errorf("the verdict was not kept: %v", err)
	}
	if second := Probe(t.Context(), cache); second != first {
		t.Errorf("Probe() with a cache = %+v, want %+v", second, first)
	}
}

func TestProbeTakesTheCachedVerdictOfThisBootOnly(t *testing.T) {
	openKVM(t)
	for _, test := range []struct {
		name, text string
		want       bool // that the text is believed
	}{
		{"this boot", fmt.Sprintf(`{"version":%d,"boot_id":%q,"usable":true,"reason":"planted"}`, cacheVersion, bootID()), true},
		{"another boot", fmt.Sprintf(`{"version":%d,"boot_id":"other","usable":true,"reason":"planted"}`, cacheVersion), false},
		{"another version", fmt.Sprintf(`{"version":%d,"boot_id":%q,"usable":true,"reason":"planted"}`, cacheVersion+1, bootID()), false},
		{"truncated", `{"version":`, false},
		{"empty", ``, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			cache := filepath.Join(t.TempDir(), "kvm.json")
			if err := os.WriteFile(cache, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := Probe(t.Context(), cache).Reason == "planted"; got != test.want {
				t.Errorf("believed: %t, want %t", got, test.want)
			}
		})
	}
}

func TestExplainOpen(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{os.ErrNotExist, "does not exist"},
		{os.ErrPermission, "group kvm"},
		{errors.New("odd"), "odd"},
	} {
		if got := explainOpen(fmt.Errorf("open: %w", test.err)); !strings.Contains(got, test.want) {
			t.Errorf("explainOpen(%v) = %q, want %q in it", test.err, got, test.want)
		}
	}
}
