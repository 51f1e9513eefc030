package qemu

import (
	"github.com/seed-efd44b36/kata/internal/supervise"
	"github.com/seed-efd44b36/kata/internal/vmm"
)

// shareCaps are the capabilities that QEMU's 9p server needs to act for any
// user of the guest.
var shareCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER",
	"CAP_FSETID", "CAP_MKNOD", "CAP_SETFCAP",
}

// capabilities returns what QEMU keeps: nothing, unless it serves the share.
func capabilities(c vmm.Config) []string {
	if c.Share.Socket == "" && c.Share.Path != "" {
		return shareCaps
	}
	return []string{}
}

// access returns what QEMU may open: programs, libraries and firmware, the
// guest's kernel and initrd, and, when it serves it, the share.
func access(c vmm.Config) *supervise.Access {
	a := &supervise.Access{
		Read: []string{
			"/usr", "/opt", "/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store",
			"/etc/ld.so.cache", "/dev/urandom", c.Binary, c.Kernel, c.Initrd,
		},
		Write: []string{"/dev/null"},
	}
	if c.Accel == vmm.AccelKVM {
		a.Write = append(a.Write, "/dev/kvm")
	}
	if c.Share.Socket == "" && c.Share.Path != "" {
		a.Write = append(a.Write, c.Share.Path)
	}
	return a
}
