package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// setting is a file of a group and what to write into it.
type setting struct {
	field string // of the spec
	file  string
	value string
	// optional settings may be missing: without what they limit there is nothing
	// to enforce.
	optional bool
}

// settings translates all limits but those of devices. In an update a value that
// was given before may stay unsaid.
func settings(r *specs.LinuxResources, update bool) ([]setting, error) {
	var list []setting
	var bad []error
	add := func(more []setting, err error) {
		list = append(list, more...)
		if err != nil {
			bad = append(bad, err)
		}
	}
	if r.Memory != nil {
		add(memory(r.Memory))
	}
	if r.CPU != nil {
		add(cpu(r.CPU, update))
	}
	if r.BlockIO != nil {
		add(blockIO(r.BlockIO))
	}
	if p := r.Pids; p != nil && p.Limit != nil {
		list = append(list, setting{field: "linux.resources.pids.limit", file: "pids.max", value: limit(*p.Limit)})
	}
	for _, h := range r.HugepageLimits {
		if strings.ContainsAny(h.Pagesize, "/.") || h.Pagesize == "" {
			bad = append(bad, fmt.Errorf("linux.resources.hugepageLimits: invalid page size %q", h.Pagesize))
			continue
		}
		value := strconv.FormatUint(h.Limit, 10)
		list = append(list,
			setting{field: "linux.resources.hugepageLimits", file: "hugetlb." + h.Pagesize + ".max", value: value},
			setting{field: "linux.resources.hugepageLimits", file: "hugetlb." + h.Pagesize + ".rsvd.max", value: value, optional: true})
	}
	if n := r.Network; n != nil && (n.ClassID != nil || len(n.Priorities) > 0) {
		bad = append(bad, errors.New("linux.resources.network: cgroup version 2 cannot do it"))
	}
	for _, device := range slices.Sorted(maps.Keys(r.Rdma)) {
		list = append(list, rdma(device, r.Rdma[device]))
	}
	add(unified(r.Unified))
	return list, errors.Join(bad...)
}

// limit is a number, or "max" for what stands for none.
func limit(n int64) string {
	if n <= 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func memory(m *specs.LinuxMemory) ([]setting, error) {
	const field = "linux.resources.memory."
	var bad []error
	refuse := func(name string) {
		bad = append(bad, errors.New(field+name+": cgroup version 2 cannot do it"))
	}
	if k := m.Kernel; k != nil && *k > 0 { //nolint:staticcheck // deprecated, and has to be refused
		refuse("kernel")
	}
	if k := m.KernelTCP; k != nil && *k > 0 {
		refuse("kernelTCP")
	}
	if m.Swappiness != nil {
		refuse("swappiness")
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		refuse("disableOOMKiller")
	}
	if m.UseHierarchy != nil && !*m.UseHierarchy {
		refuse("useHierarchy")
	}
	var list []setting
	if m.Swap != nil && *m.Swap != 0 {
		s := setting{field: field + "swap", file: "memory.swap.max", optional: true}
		switch {
		case *m.Swap < 0:
			s.value = "max"
		case m.Limit == nil || *m.Limit <= 0:
			bad = append(bad, errors.New(field+"swap: needs a memory limit"))
		case *m.Swap < *m.Limit:
			bad = append(bad, fmt.Errorf(field+"swap: %d, the sum of memory and swap, is less than the memory limit %d", *m.Swap, *m.Limit))
		default:
			s.value = strconv.FormatInt(*m.Swap-*m.Limit, 10)
		}
		list = append(list, s)
	}
	if m.Limit != nil && *m.Limit != 0 {
		list = append(list, setting{field: field + "limit", file: "memory.max", value: limit(*m.Limit)})
	}
	if m.Reservation != nil && *m.Reservation != 0 {
		list = append(list, setting{field: field + "reservation", file: "memory.low", value: limit(*m.Reservation)})
	}
	return list, errors.Join(bad...)
}

func cpu(c *specs.LinuxCPU, update bool) ([]setting, error) {
	const field = "linux.resources.cpu."
	var list []setting
	var bad []error
	if c.RealtimeRuntime != nil && *c.RealtimeRuntime > 0 || c.RealtimePeriod != nil && *c.RealtimePeriod > 0 {
		bad = append(bad, errors.New(field+"realtimeRuntime: cgroup version 2 cannot do it"))
	}
	if c.Idle != nil {
		list = append(list, setting{field: field + "idle", file: "cpu.idle", value: strconv.FormatInt(*c.Idle, 10)})
	}
	if c.Shares != nil && *c.Shares != 0 && (c.Idle == nil || *c.Idle == 0) {
		list = append(list, setting{field: field + "shares", file: "cpu.weight", value: strconv.FormatUint(weight(*c.Shares), 10)})
	}
	quota, period := c.Quota, c.Period
	if quota != nil && *quota == 0 {
		quota = nil
	}
	if period != nil && *period == 0 {
		period = nil
	}
	if quota != nil || period != nil {
		s := setting{field: field + "quota", file: "cpu.max", value: "max"}
		if quota != nil {
			s.value = limit(*quota)
		} else if update {
			bad = append(bad, errors.New(field+"period: an update needs the quota as well"))
		}
		if period != nil {
			s.value += " " + strconv.FormatUint(*period, 10)
		}
		list = append(list, s)
	}
	if c.Burst != nil {
		list = append(list, setting{field: field + "burst", file: "cpu.max.burst", value: strconv.FormatUint(*c.Burst, 10)})
	}
	if c.Cpus != "" {
		list = append(list, setting{field: field + "cpus", file: "cpuset.cpus", value: c.Cpus})
	}
	if c.Mems != "" {
		list = append(list, setting{field: field + "mems", file: "cpuset.mems", value: c.Mems})
	}
	return list, errors.Join(bad...)
}

// weight converts CPU shares, 2 to 262144 around 1024, to a weight, 1 to 10000
// around 100. Engines think in shares: the curve, which the present runtimes and
// Kubernetes agree on, makes the defaults meet, where a straight line would give
// containers less than half of the share of everything else.
func weight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612.0-7.0/34.0)))
}

func blockIO(b *specs.LinuxBlockIO) ([]setting, error) {
	const field = "linux.resources.blockIO."
	var list []setting
	var bad []error
	if b.LeafWeight != nil && *b.LeafWeight != 0 {
		bad = append(bad, errors.New(field+"leafWeight: cgroup version 2 cannot do it"))
	}
	ioWeight := func(name string, w uint16) (string, bool) {
		if w < 10 || w > 1000 {
			bad = append(bad, fmt.Errorf(field+"%s: %d is not from 10 to 1000", name, w))
			return "", false
		}
		return strconv.FormatUint(1+(uint64(w)-10)*9999/990, 10), true
	}
	if b.Weight != nil && *b.Weight != 0 {
		if w, ok := ioWeight("weight", *b.Weight); ok {
			list = append(list, setting{field: field + "weight", file: "io.weight", value: "default " + w})
		}
	}
	for _, d := range b.WeightDevice {
		if d.LeafWeight != nil && *d.LeafWeight != 0 {
			bad = append(bad, errors.New(field+"weightDevice: leafWeight: cgroup version 2 cannot do it"))
		}
		if d.Weight == nil {
			continue
		}
		if w, ok := ioWeight("weightDevice", *d.Weight); ok {
			list = append(list, setting{field: field + "weightDevice", file: "io.weight", value: fmt.Sprintf("%d:%d %s", d.Major, d.Minor, w)})
		}
	}
	throttle := func(name, key string, devices []specs.LinuxThrottleDevice) {
		for _, d := range devices {
			list = append(list, setting{
				field: field + name, file: "io.max",
				value: fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, key, limit(int64(min(d.Rate, math.MaxInt64)))),
			})
		}
	}
	throttle("throttleReadBpsDevice", "rbps", b.ThrottleReadBpsDevice)
	throttle("throttleWriteBpsDevice", "wbps", b.ThrottleWriteBpsDevice)
	throttle("throttleReadIOPSDevice", "riops", b.ThrottleReadIOPSDevice)
	throttle("throttleWriteIOPSDevice", "wiops", b.ThrottleWriteIOPSDevice)
	return list, errors.Join(bad...)
}

func rdma(device string, l specs.LinuxRdma) setting {
	value := device
	if l.HcaHandles != nil {
		value += fmt.Sprintf(" hca_handle=%d", *l.HcaHandles)
	}
	if l.HcaObjects != nil {
		value += fmt.Sprintf(" hca_object=%d", *l.HcaObjects)
	}
	return setting{field: "linux.resources.rdma", file: "rdma.max", value: value}
}

// unified are settings of version 2 as they are.
func unified(files map[string]string) ([]setting, error) {
	var list []setting
	var bad []error
	for _, file := range slices.Sorted(maps.Keys(files)) {
		// The files of the core are for moving processes and the like.
		if strings.Contains(file, "/") || !strings.Contains(file, ".") || strings.HasPrefix(file, ".") || strings.HasPrefix(file, "cgroup.") {
			bad = append(bad, fmt.Errorf("linux.resources.unified: %q is no setting of a controller", file))
			continue
		}
		// A file may take several lines, one by one.
		for line := range strings.Lines(files[file]) {
			list = append(list, setting{field: "linux.resources.unified", file: file, value: strings.TrimSuffix(line, "\n")})
		}
	}
	return list, errors.Join(bad...)
}
