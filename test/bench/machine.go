package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// describe tells what the figures were measured on.
func describe(ctx context.Context, kernel, accel string) []string {
	var u unix.Utsname
	_ = unix.Uname(&u) // it cannot fail
	list := []string{
		fmt.Sprintf("%d × %s", runtime.NumCPU(), cpuModel()),
		"host Linux " + unix.ByteSliceToString(u.Release[:]),
		firstLine(ctx, "qemu-system-x86_64", "--version"),
		"accelerator " + accel,
		"guest Linux " + kernel,
	}
	if l, err := os.ReadFile("/proc/loadavg"); err == nil {
		list = append(list, "load at the start "+strings.Fields(string(l))[0])
	}
	if v := firstLine(ctx, "runc", "--version"); v != "" {
		list = append(list, v)
	}
	return list
}

func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == "model name" {
			return strings.TrimSpace(v)
		}
	}
	return "unknown processor"
}

func firstLine(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

func today() string { return time.Now().UTC().Format(time.DateOnly) }
