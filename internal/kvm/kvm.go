// Package kvm finds out whether this host's /dev/kvm can run a guest kernel.
//
// That the device exists proves nothing. On nested and para-virtual hosts it can
// be opened and makes virtual machines, but the virtual CPU stops at, or spins
// for ever over, instructions that every kernel uses. So Probe runs such
// instructions in a throw-away machine, within a deadline.
package kvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// deadline bounds the whole probe. Real hardware needs 20 ms.
const deadline = 2 * time.Second

// CacheFile is the usual name of Probe's cache file.
const CacheFile = "kvm.json"

// Verdict is what a probe found.
type Verdict struct {
	// Usable is whether a guest kernel can run.
	Usable bool
	// Reason says in one sentence why not, or what was tried.
	Reason string
}

// cached is the content of the cache file. What it says holds until the host
// is booted again.
type cached struct {
	Version int    `json:"version"`
	BootID  string `json:"boot_id"`
	Usable  bool   `json:"usable"`
	Reason  string `json:"reason"`
}

// cacheVersion changes when the probe does.
const cacheVersion = 1

// Probe tells whether /dev/kvm works. The verdict of a probe that could be run
// is kept in the file cachePath for as long as the host is up; an empty path
// keeps nothing, and a file that cannot be read or written is no error.
func Probe(ctx context.Context, cachePath string) Verdict {
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return Verdict{Reason: explainOpen(err)}
	}
	defer func() { _ = dev.Close() }()

	boot := bootID()
	if v, ok := load(cachePath, boot); ok {
		return v
	}
	probing, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	v := verdict(run(probing, dev, allTrials()))
	if ctx.Err() == nil { // else it says nothing about the host
		store(cachePath, boot, v)
	}
	return v
}

func explainOpen(err error) string {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "/dev/kvm does not exist: the CPU has no virtualization, it is switched off in the firmware, or the module kvm_intel or kvm_amd is not loaded"
	case errors.Is(err, os.ErrPermission):
		return "/dev/kvm cannot be opened by this user: add it to the group kvm"
	default:
		return fmt.Sprintf("/dev/kvm cannot be opened: %v", err)
	}
}

func verdict(err error) Verdict {
	if err != nil {
		return Verdict{Reason: fmt.Sprintf("/dev/kvm exists but cannot run a guest kernel: %v", err)}
	}
	return Verdict{Usable: true, Reason: "a test machine ran paging, cmpxchg16b, xrstor and int3"}
}

func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

func load(path, boot string) (Verdict, bool) {
	if path == "" || boot == "" {
		return Verdict{}, false
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return Verdict{}, false
	}
	var c cached
	if json.Unmarshal(text, &c) != nil || c.Version != cacheVersion || c.BootID != boot {
		return Verdict{}, false
	}
	return Verdict{Usable: c.Usable, Reason: c.Reason}, true
}

// store replaces the file at once, so that a reader sees the old one or the
// new one.
func store(path, boot string, v Verdict) {
	if path == "" || boot == "" {
		return
	}
	text, err := json.Marshal(cached{cacheVersion, boot, v.Usable, v.Reason})
	if err != nil {
		return
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), ".kvm-*")
	if err != nil {
		return
	}
	_, err = temporary.Write(text)
	if err = errors.Join(err, temporary.Close()); err == nil {
		err = os.Rename(temporary.Name(), path)
	}
	if err != nil {
		_ = os.Remove(temporary.Name())
	}
}
