package subject

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fakeRuntime is a program with the verbs of an OCI runtime that writes down how it
// was called.
func fakeRuntime(t *testing.T, without []string, fails string) (o *oci, calls func() []string) {
	t.Helper()
	r := testRig(t)
	log := filepath.Join(r.dir, "calls")
	binary, err := r.script("fake", `shift 2
echo "$*" >> `+log+`
case $1 in
state) echo '{"status":"stopped"}' ;;
run) echo started ;;
`+fails+`) echo no such thing >&2; exit 1 ;;
esac`)
	if err != nil {
		t.Fatal(err)
	}
	b := &bundles{rig: r, template: []byte(`{"root":{},"process":{},"linux":{}}`)}
	return &oci{b, tool{binary: binary, without: without}, r.dir}, func() []string {
		data, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(data)), "\n")
	}
}

func TestVerbTimes(t *testing.T) {
	for _, without := range [][]string{nil, {"events", "update"}} {
		o, calls := fakeRuntime(t, without, "none")
		times, err := o.verbTimes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := slices.DeleteFunc(Verbs(), func(v string) bool { return slices.Contains(without, v) })
		if got := slices.Sorted(maps.Keys(times)); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("without %v: got %v, want %v", without, got, want)
		}
		// One to its end by verbs, one detached, one in the foreground.
		list := calls()
		if !slices.Contains(list, "kill bench-1 KILL") || !slices.Contains(list, "delete bench-1") || !slices.Contains(list, "delete --force bench-1") {
			t.Errorf("got calls %q", list)
		}
	}
}

// A verb that fails ends the trial, and nothing stays.
func TestVerbTimesFailure(t *testing.T) {
	o, calls := fakeRuntime(t, nil, "pause")
	_, err := o.verbTimes(t.Context())
	if err == nil || !strings.Contains(err.Error(), "pause") || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("got %v", err)
	}
	if list := calls(); list[len(list)-1] != "delete --force bench-1" {
		t.Errorf("got calls %q", list)
	}
}
