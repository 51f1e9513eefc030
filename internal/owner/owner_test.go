package owner

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// A user's sandbox cannot have the name of a machine of our own: it would be taken
// for one that waits, and ended when there is too little memory.
func TestOpenRefusesNamesOfOurs(t *testing.T) {
	for _, id := range []string{"warm-1", "template-1"} {
		mounts, err := os.Open("/proc/self/ns/mnt")
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = Open(Options{ID: id, HostMounts: mounts})
		if !errors.Is(err, errReserved) || !strings.Contains(err.Error(), id) {
			t.Errorf("%s: got %v", id, err)
		}
		if err := mounts.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: the mount namespace was left open: %v", id, err)
		}
	}
}
