package shim

import (
	"io"
	"strings"
	"testing"
)

// TestDeleteElsewhere: what a record names as the sandbox does not lead out of
// the directory of sandboxes.
func TestDeleteElsewhere(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"", "..", "../x", "a/b"} {
		dir := t.TempDir()
		if err := (record{Sandbox: id, Socket: dir + "/s", Config: dir + "/none"}).write(dir); err != nil {
			t.Fatal(err)
		}
		err := command{id: "c", bundle: dir, stdout: io.Discard}.delete()
		if err == nil || !strings.Contains(err.Error(), "record of the shim") {
			t.Errorf("%q: %v; want a refusal", id, err)
		}
	}
}
