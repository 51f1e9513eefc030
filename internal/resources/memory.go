package resources

import (
	"bytes"
	"errors"
	"fmt"
	"os"
)

// AvailableMemory is how much of the host's memory can be had without swapping, in
// percent.
func AvailableMemory() (int, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("memory of the host: %w", err)
	}
	return availableMemory(text)
}

func availableMemory(meminfo []byte) (int, error) {
	var total, available int
	for line := range bytes.Lines(meminfo) {
		_, _ = fmt.Sscanf(string(line), "MemTotal: %d kB", &total)
		_, _ = fmt.Sscanf(string(line), "MemAvailable: %d kB", &available)
	}
	if total == 0 || available == 0 {
		return 0, errors.New("memory of the host: /proc/meminfo does not say it")
	}
	return available * 100 / total, nil
}
