package qemu

import (
	"crypto/sha256"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"

	"github.com/seed-efd44b36/kata/internal/supervise"
	"github.com/seed-efd44b36/kata/internal/vmm"
)

// saves reports whether QEMU opens the memory's file itself, to fill it.
func saves(c vmm.Config) bool { return c.Memory != nil && c.State == nil }

// access returns what QEMU may open: programs, libraries and firmware, the
// guest's kernel and initrd.
func access(c vmm.Config) *supervise.Access {
	a := &supervise.Access{
		Read: []string{
			"/usr", "/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store",
			"/etc/ld.so.cache", "/dev/urandom", c.Binary, c.Kernel, c.Initrd,
		},
		Write: []string{"/dev/null"},
	}
	if name, ok := strings.CutPrefix(c.Binary, "/opt/"); ok {
		// A QEMU that brings its own libraries and firmware.
		name, _, _ = strings.Cut(name, "/")
		a.Read = append(a.Read, filepath.Join("/opt", name))
	}
	if c.Accel == vmm.AccelKVM {
		a.Write = append(a.Write, "/dev/kvm")
	}
	if saves(c) {
		a.Write = append(a.Write, c.Memory.Name())
	}
	return a
}

// firstUID begins the range of user ids for QEMU, of 1<<24. It is one that
// neither people nor containers get: systemd's table of ids has it as unused.
const firstUID = 0x70000000

// user returns whom QEMU runs as: nobody else, unless it has to be root to
// fill the memory's file, or because a file that it needs is open to root only.
func user(c vmm.Config) *supervise.User {
	if saves(c) {
		return nil
	}
	for path, need := range map[string]os.FileMode{c.Binary: 0o5, c.Kernel: 0o4, c.Initrd: 0o4} {
		if !othersMay(path, need) {
			return nil
		}
	}
	if c.Accel == vmm.AccelKVM && !othersMay("/dev/kvm", 0o6) {
		return nil
	}
	sum := sha256.Sum256([]byte(c.ID))
	id := firstUID + binary.BigEndian.Uint32(sum[:4])>>8
	return &supervise.User{UID: id, GID: id}
}

// othersMay reports whether a file grants the permissions in need to everybody.
// The directories that it is in do not matter: in its root, QEMU's are others.
func othersMay(path string, need os.FileMode) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().Perm()&need == need
}
