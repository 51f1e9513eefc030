package agent

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/seed-efd44b36/kata/internal/agent/jail"
)

// slowMonitor lets the timers of the Go runtime's monitor fire late. It sleeps for
// 20 µs at a time while anything runs, and what it then does is of little use to us.
// In an emulated guest each of its wake-ups takes several times as long as that:
// without them an exec takes two thirds of the time, and output has twice the rate.
func slowMonitor() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("list threads: %w", err)
	}
	var tids []int
	for _, t := range tasks {
		if tid, err := strconv.Atoi(t.Name()); err == nil && tid != os.Getpid() {
			tids = append(tids, tid)
		}
	}
	if len(tids) == 0 {
		return errors.New("list threads: there is only one")
	}
	// It is the first thread that the runtime starts.
	// Not below /proc/self/task, where there is no such file.
	file := fmt.Sprintf("/proc/%d/timerslack_ns", slices.Min(tids))
	if err := os.WriteFile(file, strconv.AppendInt(nil, jail.MonitorSlack.Nanoseconds(), 10), 0); err != nil {
		return fmt.Errorf("set timer slack: %w", err)
	}
	return nil
}
