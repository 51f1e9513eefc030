package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
)

// Stats measures the group. The network is left empty, and so is all that belongs
// to a controller which the kernel does not have.
func (g *Group) Stats() (*agentv1.StatsContainerResponse, error) {
	s := &agentv1.StatsContainerResponse{
		Cpu:    &agentv1.CPUStats{},
		Memory: &agentv1.MemoryStats{},
		Pids:   &agentv1.PidsStats{},
	}
	cpu, err := readKeyed(g.dir, "cpu.stat")
	if err != nil {
		return nil, fmt.Errorf("measure cgroup %q: %w", g.dir, err)
	}
	s.Cpu.UsageUsec, s.Cpu.UserUsec, s.Cpu.SystemUsec = cpu["usage_usec"], cpu["user_usec"], cpu["system_usec"]
	s.Cpu.NrPeriods, s.Cpu.NrThrottled, s.Cpu.ThrottledUsec = cpu["nr_periods"], cpu["nr_throttled"], cpu["throttled_usec"]

	var failed []error
	optional := func(err error) {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	number := func(to *uint64, file string) {
		n, err := readUint(g.dir, file)
		optional(err)
		*to = n
	}
	m := s.Memory
	number(&m.Usage, "memory.current")
	number(&m.Limit, "memory.max")
	number(&m.Peak, "memory.peak")
	number(&m.SwapUsage, "memory.swap.current")
	number(&m.SwapLimit, "memory.swap.max")
	m.Stat, err = readKeyed(g.dir, "memory.stat")
	optional(err)
	events, err := readKeyed(g.dir, "memory.events")
	optional(err)
	m.Oom, m.OomKill = events["oom"], events["oom_kill"]
	number(&s.Pids.Current, "pids.current")
	number(&s.Pids.Limit, "pids.max")
	data, err := os.ReadFile(filepath.Join(g.dir, "io.stat"))
	optional(err)
	s.Io = parseIO(data)
	if err := errors.Join(failed...); err != nil {
		return nil, fmt.Errorf("measure cgroup %q: %w", g.dir, err)
	}
	return s, nil
}

// readUint reads a file that holds a number; "max" is 0.
func readUint(dir, file string) (uint64, error) {
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, err
	}
	text := strings.TrimSpace(string(data))
	if text == "max" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

// readKeyed reads a file with a name and a number on each line. Lines of other
// forms are passed over.
func readKeyed(dir, file string) (map[string]uint64, error) {
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return nil, err
	}
	values := make(map[string]uint64)
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		key, text, ok := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseUint(text, 10, 64); ok && err == nil {
			values[key] = n
		}
	}
	return values, lines.Err()
}

// parseIO reads lines such as "8:0 rbytes=1 wbytes=2 rios=3 wios=4".
func parseIO(data []byte) []*agentv1.IOStats {
	var list []*agentv1.IOStats
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		major, minor, _ := strings.Cut(fields[0], ":")
		maj, err1 := strconv.ParseUint(major, 10, 32)
		minr, err2 := strconv.ParseUint(minor, 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		s := &agentv1.IOStats{Major: maj, Minor: minr}
		for _, f := range fields[1:] {
			key, text, _ := strings.Cut(f, "=")
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				continue
			}
			switch key {
			case "rbytes":
				s.Rbytes = n
			case "wbytes":
				s.Wbytes = n
			case "rios":
				s.Rios = n
			case "wios":
				s.Wios = n
			}
		}
		list = append(list, s)
	}
	return list
}
