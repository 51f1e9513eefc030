package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The items that others refer to.
const (
	bootID     = "boot id"
	systemTime = "system time"
)

// refused begins the value of what a container may not see.
const refused = "refused: "

// item is a thing that a container has, of its own or of the host.
type item struct {
	name string
	// look returns what is seen from here. foreign says that the kernel is
	// another one than the host's, which must not be changed.
	look func(foreign bool) string
	// judge tells whose it is: "own" or "host's".
	judge func(facts) string
}

// facts are the values of all items: of the host before and after the
// container ran, and of the container.
type facts struct{ before, after, inside map[string]string }

// collect looks at all items from where it runs. hostBoot is the boot id of the
// host, empty on the host itself.
func collect(hostBoot string) map[string]string {
	foreign := hostBoot != "" && file("/proc/sys/kernel/random/boot_id") != hostBoot
	seen := map[string]string{}
	for _, it := range items() {
		seen[it.name] = it.look(foreign)
	}
	return seen
}

// items are those of the list in the project's description, and what tells
// kernels apart.
func items() []item {
	read := func(path string) func(bool) string { return func(bool) string { return file(path) } }
	plain := func(name string, look func(bool) string) item { return item{name, look, differs(name)} }
	return []item{
		plain("kernel", func(bool) string { return kernel() }),
		plain(bootID, read("/proc/sys/kernel/random/boot_id")),
		plain("kernel command line", read("/proc/cmdline")),
		{"top: counting since", func(bool) string { return grep("/proc/stat", "btime") }, near("top: counting since", 2)},
		plain("top: processes", func(bool) string { return processes() }),
		{"free: memory", func(bool) string { return grep("/proc/meminfo", "MemTotal") }, differs("free: memory")},
		plain("iostat: disks", func(bool) string { return columns("/proc/diskstats", 2) }),
		plain("/proc/cpuinfo", func(bool) string { return cpus() }),
		{"/proc/uptime: booted at", func(bool) string { return bootTime() }, near("/proc/uptime: booted at", 3)},
		{"/proc/loadavg: threads", func(bool) string { return threads() }, near("/proc/loadavg: threads", 25)},
		plain("/sys: devices", func(bool) string { return names("/sys/bus/*/devices/*") }),
		plain("/dev: drivers", func(bool) string { return columns("/proc/devices", 1) }),
		plain("syslog (dmesg)", func(bool) string { return dmesg() }),
		{systemTime, setClock, anotherKernel},
		plain("kernel modules", func(bool) string { return columns("/proc/modules", 0) }),
		{"loading a module", offerModule, anotherKernel},
		{"root", func(bool) string { return root() }, anotherKernel},
		{"SELinux, AppArmor", func(bool) string { return securityModules() }, anotherKernel},
		plain("host name", func(bool) string { return file("/proc/sys/kernel/hostname") }),
	}
}

// differs: it is the container's own when it is not what the host has.
func differs(name string) func(facts) string {
	return func(f facts) string {
		if v := f.inside[name]; v == f.before[name] || v == f.after[name] {
			return "host's"
		}
		return "own"
	}
}

// near is differs for a number that moves a little: the first in the value.
func near(name string, tolerance float64) func(facts) string {
	return func(f facts) string {
		for _, host := range []string{f.before[name], f.after[name]} {
			if math.Abs(number(f.inside[name])-number(host)) <= tolerance {
				return "host's"
			}
		}
		return "own"
	}
}

// number returns the first number in the text.
func number(s string) float64 {
	for w := range strings.FieldsSeq(s) {
		if n, err := strconv.ParseFloat(w, 64); err == nil {
			return n
		}
	}
	return math.NaN()
}

// anotherKernel is for what belongs to the kernel as such.
func anotherKernel(f facts) string { return differs(bootID)(f) }

// file returns a file's content as one line, or why it cannot be read.
func file(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return explain(err)
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

// explain distinguishes what is not there from what is not shown.
func explain(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "none"
	}
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return refused + "permission"
	}
	return err.Error()
}

// grep returns the line that begins with the word.
func grep(path, word string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return explain(err)
	}
	for l := range strings.Lines(string(b)) {
		if strings.HasPrefix(l, word) {
			return strings.Join(strings.Fields(l), " ")
		}
	}
	return "none"
}

// columns counts the lines of a file and names the field n of each.
func columns(path string, n int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return explain(err)
	}
	var list []string
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) > n && (n == 0 || strings.Trim(f[0], "0123456789") == "") {
			list = append(list, f[n])
		}
	}
	return fmt.Sprintf("%d: %s", len(list), strings.Join(list, " "))
}

// names counts the files that match and names them.
func names(pattern string) string {
	list, err := filepath.Glob(pattern)
	if err != nil {
		return explain(err)
	}
	for i, p := range list {
		list[i] = filepath.Base(p)
	}
	return fmt.Sprintf("%d: %s", len(list), strings.Join(list, " "))
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return explain(err)
	}
	return unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Version[:])
}

func processes() string {
	list, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return explain(err)
	}
	return fmt.Sprintf("%d, first %s", len(list), file("/proc/1/comm"))
}

func cpus() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return explain(err)
	}
	_, model, _ := strings.Cut(grep("/proc/cpuinfo", "model name"), ":")
	return fmt.Sprintf("%d ×%s", bytes.Count(b, []byte("processor\t")), model)
}

// bootTime is when the kernel was started, by its uptime, in seconds.
func bootTime() string {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
		return explain(err)
	}
	return fmt.Sprintf("%.0f", float64(now.Sec)-number(file("/proc/uptime")))
}

func threads() string {
	f := strings.Fields(file("/proc/loadavg"))
	if len(f) != 5 {
		return "none"
	}
	_, total, _ := strings.Cut(f[3], "/")
	return total
}

// dmesg returns the first line of the kernel's log.
func dmesg() string {
	buf := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	if err != nil {
		return explain(err)
	}
	line, _, _ := strings.Cut(string(buf[:n]), "\n")
	return line
}

// root tells what user 0 is here.
func root() string {
	return fmt.Sprintf("uid %d, maps %s", os.Getuid(), file("/proc/self/uid_map"))
}

func securityModules() string {
	list := file("/sys/kernel/security/lsm")
	if list == "none" {
		list = "list not shown"
	}
	label := "none" // as when no module gives any: the read fails
	if b, err := os.ReadFile("/proc/self/attr/current"); err == nil {
		label = strings.Trim(string(b), "\x00\n")
	}
	return fmt.Sprintf("%s, label %s", list, label)
}
