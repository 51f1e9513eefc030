package resources

import (
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

func TestParseCPUs(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		list string
		want []int // nil: an error
	}{
		{"0", []int{0}},
		{"0-2,5", []int{0, 1, 2, 5}},
		{"3, 1", []int{1, 3}},
		{"", nil},
		{"a", nil},
		{"2-1", nil},
		{"0-9999", nil},
		{"1-", nil},
		{"-1", nil},
	} {
		set, err := parseCPUs(tt.list)
		if tt.want == nil {
			if err == nil {
				t.Errorf("%q: no error", tt.list)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tt.list, err)
			continue
		}
		if set.Count() != len(tt.want) {
			t.Errorf("%q: %d CPUs, want %v", tt.list, set.Count(), tt.want)
		}
		for _, c := range tt.want {
			if !set.IsSet(c) {
				t.Errorf("%q: CPU %d is not in it", tt.list, c)
			}
		}
	}
}

func TestPin(t *testing.T) {
	t.Parallel()
	var set unix.CPUSet
	if err := thread.Run(func() error {
		if err := Pin("0"); err != nil {
			return err
		}
		return unix.SchedGetaffinity(0, &set)
	}); err != nil {
		t.Fatal(err)
	}
	if set.Count() != 1 || !set.IsSet(0) {
		t.Errorf("the thread may run on %d CPUs, want CPU 0 only", set.Count())
	}
	err := thread.Run(func() error { return Pin("1000") })
	if err == nil || !strings.Contains(err.Error(), "does this host have them") {
		t.Errorf("a CPU that is not there: %v", err)
	}
}
