package guestimage

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// File types and permissions of archive entries, as in st_mode.
const (
	modeDir  = 0o040755
	modeFile = 0o100644
	modeExec = 0o100755
	modeChar = 0o020600
	modeLink = 0o120777
)

// cpioWriter writes an archive of the "newc" kind, the one that the kernel
// unpacks. The same calls make the same bytes: times and owners are 0. The
// first error sticks and is returned by close.
type cpioWriter struct {
	w    io.Writer
	n    int64
	ino  uint32
	dirs map[string]bool
	err  error
}

func newCpioWriter(w io.Writer) *cpioWriter {
	return &cpioWriter{w: w, dirs: map[string]bool{"": true, ".": true}}
}

// dir adds a directory and those above it, once.
func (c *cpioWriter) dir(name string) {
	if c.dirs[name] {
		return
	}
	c.dir(parent(name))
	c.dirs[name] = true
	c.entry(name, modeDir, 0, nil)
}

// file adds a regular file and the directories above it.
func (c *cpioWriter) file(name string, mode uint32, data []byte) {
	c.dir(parent(name))
	c.entry(name, mode, 0, data)
}

// charDevice adds a character device and the directories above it.
func (c *cpioWriter) charDevice(name string, major, minor uint8) {
	c.dir(parent(name))
	c.entry(name, modeChar, uint16(major)<<8|uint16(minor), nil)
}

func parent(name string) string {
	dir := path.Dir(name)
	return strings.TrimPrefix(dir, ".")
}

func (c *cpioWriter) entry(name string, mode uint32, rdev uint16, data []byte) {
	c.ino++
	nlink := 1
	if mode == modeDir {
		nlink = 2
	}
	c.printf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.ino, mode, 0, 0, nlink, 0, len(data), 0, 0, rdev>>8, rdev&0xff, len(name)+1, 0, name)
	c.pad()
	c.write(data)
	c.pad()
}

// close ends the archive.
func (c *cpioWriter) close() error {
	c.ino = 0
	c.entry("TRAILER!!!", 0, 0, nil)
	return c.err
}

func (c *cpioWriter) printf(format string, args ...any) { c.write(fmt.Appendf(nil, format, args...)) }

func (c *cpioWriter) pad() { c.write(make([]byte, (4-c.n%4)%4)) }

func (c *cpioWriter) write(data []byte) {
	if c.err != nil || len(data) == 0 {
		return
	}
	n, err := c.w.Write(data)
	c.n += int64(n)
	c.err = err
}

// writeInitrd writes the guest's first file system: the agent as /init, the
// modules it may load and the plan by which it loads them.
func writeInitrd(w io.Writer, agent []byte, plan plan) error {
	c := newCpioWriter(w)
	// The kernel opens /dev/console for /init before any file system is
	// mounted over /dev.
	c.charDevice("dev/console", 5, 1)
	for _, d := range []string{"proc", "sys", "run", "tmp"} {
		c.dir(d)
	}
	c.file("etc/kata/modules", modeFile, plan.list())
	c.file("init", modeExec, agent)
	// The kernel starts it to have a module loaded that it misses.
	c.file("sbin/modprobe", modeLink, []byte("/init"))
	for _, m := range plan.modules {
		c.file(strings.TrimPrefix(plan.path(m.name), "/"), modeFile, m.data)
	}
	return c.close()
}
