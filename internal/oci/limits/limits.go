// Package limits reads the limits of a container from the flags of the verb update,
// which are runc's.
package limits

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/pflag"
)

// Why flags of update are refused.
const (
	noRealTime = "the guest's cgroups have no real-time scheduling"
	noRDT      = "Intel RDT is not available in a virtual machine"
)

// Flags are the flags of update.
type Flags struct {
	file, cpus, mems                         string
	shares, period                           uint64
	quota, memory, reservation, swap, pids   int64
	weight                                   uint16
	rtPeriod                                 uint64
	rtRuntime, kernelMemory, kernelTCPMemory int64
	l3, memBandwidth                         string
}

// Add adds the flags to those of a command.
func (l *Flags) Add(f *pflag.FlagSet) {
	f.StringVarP(&l.file, "resources", "r", "", "a `file` with linux.resources, or - for standard input; other flags are ignored then")
	f.Uint64Var(&l.shares, "cpu-share", 0, "CPU shares")
	f.Uint64Var(&l.period, "cpu-period", 0, "period of the CPU quota, in microseconds")
	f.Int64Var(&l.quota, "cpu-quota", 0, "CPU time in a period, in microseconds")
	f.StringVar(&l.cpus, "cpuset-cpus", "", "accepted: a running sandbox keeps its CPUs")
	f.StringVar(&l.mems, "cpuset-mems", "", "accepted, likewise")
	f.Int64Var(&l.memory, "memory", 0, "memory, in bytes")
	f.Int64Var(&l.reservation, "memory-reservation", 0, "memory that is to be left to it, in bytes")
	f.Int64Var(&l.swap, "memory-swap", 0, "memory and swap together, in bytes; -1 for any")
	f.Int64Var(&l.pids, "pids-limit", 0, "number of processes")
	f.Uint16Var(&l.weight, "blkio-weight", 0, "weight of its input and output")
	f.Int64Var(&l.kernelMemory, "kernel-memory", 0, "accepted: kernels do not have this limit any more")
	f.Int64Var(&l.kernelTCPMemory, "kernel-memory-tcp", 0, "accepted, likewise")
	f.Uint64Var(&l.rtPeriod, "cpu-rt-period", 0, "refused: "+noRealTime)
	f.Int64Var(&l.rtRuntime, "cpu-rt-runtime", 0, "refused: "+noRealTime)
	f.StringVar(&l.l3, "l3-cache-schema", "", "refused: "+noRDT)
	f.StringVar(&l.memBandwidth, "mem-bw-schema", "", "refused: "+noRDT)
}

// Resources are the limits that the flags, or the file that they name, ask for. f tells
// which were given.
func (l *Flags) Resources(f *pflag.FlagSet, stdin io.Reader) (*specs.LinuxResources, error) {
	if l.file != "" {
		return readResources(l.file, stdin)
	}
	for _, flag := range []struct{ name, why string }{
		{"cpu-rt-period", noRealTime}, {"cpu-rt-runtime", noRealTime}, {"l3-cache-schema", noRDT}, {"mem-bw-schema", noRDT},
	} {
		if f.Changed(flag.name) {
			return nil, fmt.Errorf("--%s is refused: %s", flag.name, flag.why)
		}
	}
	r := &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: l.cpus, Mems: l.mems}, Memory: &specs.LinuxMemory{}}
	for name, set := range map[string]func(){
		"cpu-share":          func() { r.CPU.Shares = &l.shares },
		"cpu-period":         func() { r.CPU.Period = &l.period },
		"cpu-quota":          func() { r.CPU.Quota = &l.quota },
		"memory":             func() { r.Memory.Limit = &l.memory },
		"memory-reservation": func() { r.Memory.Reservation = &l.reservation },
		"memory-swap":        func() { r.Memory.Swap = &l.swap },
		"pids-limit":         func() { r.Pids = &specs.LinuxPids{Limit: &l.pids} },
		"blkio-weight":       func() { r.BlockIO = &specs.LinuxBlockIO{Weight: &l.weight} },
	} {
		if f.Changed(name) {
			set()
		}
	}
	return r, nil
}

func readResources(path string, stdin io.Reader) (*specs.LinuxResources, error) {
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("resources: %w", err)
		}
		defer f.Close()
		in = f
	}
	var r specs.LinuxResources
	if err := json.NewDecoder(in).Decode(&r); err != nil {
		return nil, fmt.Errorf("resources %s: %w", path, err)
	}
	return &r, nil
}
