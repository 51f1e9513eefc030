package engine

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/seed-efd44b36/kata/internal/sandbox/report"
)

// cgroupMount is where hosts mount cgroups.
const cgroupMount = "/sys/fs/cgroup"

// follow puts the kata-shim into the host's cgroup of its sandbox, where engines
// find at its pid what the sandbox uses.
func (b *birth) follow() error {
	st, err := report.Read(b.a.Conf.Runtime.StateDir, b.sandbox)
	if err != nil {
		return err
	}
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(st.VMMPID), "cgroup"))
	if err != nil {
		return fmt.Errorf("cgroup of the sandbox: %w", err)
	}
	defer f.Close()
	// A line is NUMBER:CONTROLLERS:PATH; without controllers it is version 2, which
	// beside version 1 has a directory of its own.
	for s := bufio.NewScanner(f); s.Scan(); {
		_, rest, _ := strings.Cut(s.Text(), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		// What the sandbox has no cgroup of its own in stays as it is.
		if filepath.Base(path) != b.sandbox {
			continue
		}
		for _, hierarchy := range []string{strings.TrimPrefix(controllers, "name="), "unified", "."} {
			procs := filepath.Join(cgroupMount, hierarchy, path, "cgroup.procs")
			if controllers == "" && hierarchy == "" {
				continue
			}
			if _, err := os.Stat(procs); err != nil {
				continue
			}
			if err := os.WriteFile(procs, []byte(strconv.Itoa(b.child.PID)), 0); err != nil {
				return fmt.Errorf("cgroup of the sandbox: %w", err)
			}
			break
		}
	}
	return nil
}
