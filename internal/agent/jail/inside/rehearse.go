package inside

import (
	"encoding/json"

	"github.com/seed-efd44b36/kata/internal/agent/jail/rootfs"
	"golang.org/x/sys/unix"
)

// Rehearse is the argument that has the process read a plan of its own making before
// it waits for one. It then writes a byte to ControlFD.
const Rehearse = "rehearse"

// rehearse reads and writes what later comes over the socket, so that the types'
// codecs are made.
func rehearse() error {
	number := 0
	p := &Plan{
		Join: []int{0}, Sysctls: [][2]string{{}},
		Root: &rootfs.Root{
			Mounts:  []rootfs.Mount{{Data: []string{""}, Propagation: []uintptr{0}}},
			Devices: []rootfs.Device{{}},
			Masked:  []string{""}, ReadOnlyPaths: []string{""},
		},
		Process: Process{
			Args: []string{""}, Env: []string{""}, Groups: []uint32{0}, Rlimits: []Rlimit{{}}, CPUs: []int{0},
			Scheduler: new(unix.SchedAttr), IOPriority: &number, Filter: Filter{{}},
		},
	}
	b, err := p.encode()
	if err != nil {
		return err
	}
	if _, err := decodePlan(b); err != nil {
		return err
	}
	if _, err := json.Marshal(answer{}); err != nil {
		return err
	}
	_, err = unix.Write(ControlFD, []byte{0})
	return err
}
