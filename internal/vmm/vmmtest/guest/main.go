// Command guest is the whole user space of the conformance suite's guest: its
// /init. It loads the modules that the initrd lists, opens the agent port, and
// does what it is told there.
//
// A request is one line, "NAME ARGUMENT…"; the answer is a line with its length
// in bytes, or "-LENGTH" for an error, and then the answer itself.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		// The initrd has it as /sbin/modprobe, too, and the kernel waits for
		// that: a module that is asked for comes by the list, or not.
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "guest:", run())
	// PID 1 must not end: that would be a kernel panic of another kind.
	for {
		_ = unix.Pause()
	}
}

// run returns why it could not go on.
func run() error {
	for _, m := range []struct{ fs, dir string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := loadModules("/etc/kata/modules"); err != nil {
		return err
	}
	port, err := openPort("agent.0")
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stdout, "guest: ready")
	return serve(port)
}

// loadModules loads every module of the list, in its order: the suite wants
// all devices at once.
func loadModules(list string) error {
	text, err := os.ReadFile(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || strings.HasPrefix(line, "#") {
			continue
		}
		if err := loadModule(fields[2]); err != nil {
			fmt.Fprintf(os.Stderr, "guest: load %s: %v\n", fields[2], err)
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// openPort opens the virtio-serial port of that name when it is there.
func openPort(name string) (*os.File, error) {
	device := ""
	err := poll(func() bool {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, file := range names {
			if text, _ := os.ReadFile(file); strings.TrimSpace(string(text)) == name {
				device = "/dev/" + filepath.Base(filepath.Dir(file))
			}
		}
		return device != ""
	})
	if err != nil {
		return nil, fmt.Errorf("find port %s: %w", name, err)
	}
	return os.OpenFile(device, os.O_RDWR, 0)
}

// poll waits until a condition holds, for a minute.
func poll(holds func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 12000 {
		if holds() {
			return nil
		}
		<-tick.C
	}
	return os.ErrDeadlineExceeded
}

func serve(port io.ReadWriter) error {
	requests := bufio.NewReader(port)
	for {
		line, err := requests.ReadString('\n')
		if err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		name, argument, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		answer, err := do(requests, name, strings.Fields(argument))
		sign := ""
		if err != nil {
			sign, answer = "-", []byte(err.Error())
		}
		if _, err := fmt.Fprintf(port, "%s%d\n%s", sign, len(answer), answer); err != nil {
			return fmt.Errorf("write an answer: %w", err)
		}
	}
}
