package resources

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxCPU is the highest number of a CPU that the kernel's own sets can hold.
const maxCPU = 1023

// Pin lets the calling thread, and what it starts, run on the given CPUs only, in
// the format of cpuset.cpus ("0-3,8").
func Pin(cpus string) error {
	set, err := parseCPUs(cpus)
	if err != nil {
		return fmt.Errorf("cpus %q: %w", cpus, err)
	}
	if err := unix.SchedSetaffinity(0, set); err != nil {
		return fmt.Errorf("run on cpus %s: %w (does this host have them?)", cpus, err)
	}
	return nil
}

func parseCPUs(list string) (*unix.CPUSet, error) {
	set := &unix.CPUSet{}
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		first, err := strconv.ParseUint(from, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is not the number of a CPU", from)
		}
		last := first
		if isRange {
			if last, err = strconv.ParseUint(to, 10, 16); err != nil {
				return nil, fmt.Errorf("%q is not the number of a CPU", to)
			}
		}
		if last < first || last > maxCPU {
			return nil, fmt.Errorf("%q is not a range of CPUs from 0 to %d", part, maxCPU)
		}
		for c := first; c <= last; c++ {
			set.Set(int(c))
		}
	}
	return set, nil
}
