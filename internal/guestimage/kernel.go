package guestimage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The places that a kernel can come from.
const (
	sourceConfigured = "configured"
	sourceTuned      = "tuned"
	sourceHost       = "host /boot"
	sourceDebian     = "debian package"
)

// The host's own kernels and their modules.
const (
	hostBoot    = "/boot"
	hostModules = "/lib/modules"
)

// candidate is a kernel image that may be usable.
type candidate struct {
	source string
	image  string
	// modules is its modules directory, "" for not known.
	modules string
}

// foundKernel is a kernel that is in the cache, and the modules for its guest.
type foundKernel struct {
	Kernel
	plan plan
	// hash is of the image that the kernel was unpacked from.
	hash string
}

// findKernel returns the first usable kernel. A configured one that cannot be
// used is an error: somebody wants that one and no other.
func (b *Builder) findKernel(ctx context.Context, c cache, seen inputs) (foundKernel, error) {
	if b.Kernel != "" {
		k, err := b.prepare(c, seen, candidate{sourceConfigured, b.Kernel, b.Modules})
		if err != nil {
			return foundKernel{}, fmt.Errorf("%w: configured kernel %s: %w; correct hypervisor.kernel in the configuration, or remove it to have one found", ErrNoKernel, b.Kernel, err)
		}
		return k, nil
	}
	var tried []error
	for _, cand := range b.candidates(c, seen) {
		if err := ctx.Err(); err != nil {
			return foundKernel{}, err
		}
		k, err := b.prepare(c, seen, cand)
		if err == nil {
			return k, nil
		}
		b.Log.Info("kernel cannot be used", "kernel", cand.image, "error", err)
		tried = append(tried, fmt.Errorf("%s: %w", cand.image, err))
	}
	cand, err := b.fetchDebian(ctx, c)
	if err == nil {
		seen.look(c.path("kernel", "debian"))
		var k foundKernel
		if k, err = b.prepare(c, seen, cand); err == nil {
			return k, nil
		}
	}
	if ctx.Err() != nil {
		return foundKernel{}, ctx.Err()
	}
	tried = append(tried, fmt.Errorf("debian package: %w", err))
	return foundKernel{}, fmt.Errorf("%w: %w; run `apt-get update` and try again, or run `make kernel`, or set hypervisor.kernel in the configuration", ErrNoKernel, oneLine(tried))
}

// oneLine joins errors so that they can stand in a sentence.
func oneLine(errs []error) error {
	joined := errs[0]
	for _, err := range errs[1:] {
		joined = fmt.Errorf("%w; %w", joined, err)
	}
	return joined
}

// candidates lists the kernels that are on this machine, the best first.
func (b *Builder) candidates(c cache, seen inputs) []candidate {
	var list []candidate
	tuned := c.path("kernel", "tuned", "vmlinux")
	seen.look(tuned)
	if exists(tuned) {
		list = append(list, candidate{sourceTuned, tuned, ""})
	}
	seen.look(hostBoot)
	list = append(list, hostKernels(hostBoot, hostModules, runningKernel())...)

	debian := c.path("kernel", "debian")
	seen.look(debian)
	names := c.entries("kernel", "debian")
	slices.SortFunc(names, func(a, b string) int { return compareVersions(b, a) })
	for _, name := range names {
		list = append(list, hostKernels(filepath.Join(debian, name, "boot"), filepath.Join(debian, name, "lib/modules"), "")...)
	}
	for i := range list {
		if strings.HasPrefix(list[i].image, debian) {
			list[i].source = sourceDebian
		}
	}
	return list
}

// hostKernels returns the kernels vmlinuz-VERSION in boot that have modules:
// the running one first, then the newest.
func hostKernels(boot, modules, running string) []candidate {
	entries, err := os.ReadDir(boot)
	if err != nil {
		return nil
	}
	var versions []string
	for _, e := range entries {
		version, ok := strings.CutPrefix(e.Name(), "vmlinuz-")
		if ok && exists(filepath.Join(modules, version, "kernel")) {
			versions = append(versions, version)
		}
	}
	slices.SortFunc(versions, func(a, b string) int {
		switch {
		case a == b:
			return 0
		case a == running:
			return -1
		case b == running:
			return 1
		}
		return compareVersions(b, a)
	})
	var list []candidate
	for _, v := range versions {
		list = append(list, candidate{sourceHost, filepath.Join(boot, "vmlinuz-"+v), filepath.Join(modules, v)})
	}
	return list
}

func runningKernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// compareVersions orders kernel releases: runs of digits by value, the rest by
// its bytes.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		da, db := digits(a), digits(b)
		if len(da) > 0 && len(db) > 0 {
			na, nb := strings.TrimLeft(da, "0"), strings.TrimLeft(db, "0")
			if len(na) != len(nb) {
				return len(na) - len(nb)
			}
			if c := strings.Compare(na, nb); c != 0 {
				return c
			}
			a, b = a[len(da):], b[len(db):]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

// digits returns the run of digits that s starts with.
func digits(s string) string {
	return s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
}

// prepare puts a kernel into the cache and plans the modules of its guest.
func (b *Builder) prepare(c cache, seen inputs, cand candidate) (foundKernel, error) {
	image, err := readInput(seen, cand.image)
	if err != nil {
		return foundKernel{}, err
	}
	id := hash([]byte(formatVersion), image)
	k, ok := c.kernel(id)
	if !ok {
		b.progress("unpacking kernel %s", cand.image)
		if k, err = unpackKernel(c, id, image); err != nil {
			return foundKernel{}, err
		}
	}
	k.Source = cand.source
	found := foundKernel{Kernel: k, hash: id, plan: plan{version: k.Version}}
	if cand.modules == "" {
		cand.modules = modulesBeside(cand, k.Version)
	}
	if cand.modules == "" {
		// Nothing tells what is built in: the guest's boot will.
		b.Log.Info("kernel has no modules directory", "kernel", cand.image)
		return found, nil
	}
	if found.plan, err = planModules(cand.modules, k.Version); err != nil {
		return foundKernel{}, err
	}
	seen.look(filepath.Join(cand.modules, "modules.builtin"))
	found.ModulesDir = cand.modules
	return found, nil
}

func unpackKernel(c cache, id string, image []byte) (Kernel, error) {
	vmlinux, err := kernelELF(image, maxKernel)
	if err != nil {
		return Kernel{}, err
	}
	k, err := inspectKernel(vmlinux)
	if err != nil {
		return Kernel{}, err
	}
	if vmlinux, err = slimKernel(vmlinux); err != nil {
		return Kernel{}, err
	}
	return c.putKernel(id, k, vmlinux)
}

// modulesBeside looks for the modules of a configured kernel in the places
// where packages and trees have them.
func modulesBeside(cand candidate, version string) string {
	if cand.source != sourceConfigured {
		return ""
	}
	dir := filepath.Dir(cand.image)
	for _, root := range []string{filepath.Join(dir, "../lib/modules"), filepath.Join(dir, "lib/modules"), hostModules} {
		if m := filepath.Join(root, version); exists(filepath.Join(m, "kernel")) {
			return m
		}
	}
	return ""
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return !errors.Is(err, fs.ErrNotExist)
}
