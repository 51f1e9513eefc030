package agent

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/internal/agent/jail"
)

// TestSlowMonitor looks for the one thread whose timers are late.
func TestSlowMonitor(t *testing.T) {
	if err := slowMonitor(); err != nil {
		t.Skip("needs root or CAP_SYS_NICE: ", err)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	var late []string
	for _, task := range tasks {
		b, err := os.ReadFile("/proc/" + task.Name() + "/timerslack_ns")
		if err != nil {
			continue // it has ended
		}
		if strings.TrimSpace(string(b)) == fmt.Sprint(jail.MonitorSlack.Nanoseconds()) {
			late = append(late, task.Name())
		}
	}
	if len(late) != 1 || late[0] == fmt.Sprint(os.Getpid()) {
		t.Errorf("threads with late timers: %v, want one that is not the main thread", late)
	}
}
