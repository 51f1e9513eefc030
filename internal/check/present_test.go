package check

import (
	"io/fs"
	"strings"
	"testing"
)

func TestLoadModule(t *testing.T) {
	for err, want := range map[error]string{fs.ErrNotExist: "modprobe tun", fs.ErrPermission: "as root"} {
		if got := loadModule(err, "tun", "none"); !strings.Contains(got, want) {
			t.Errorf("%v: %q does not say %q", err, got, want)
		}
	}
}
