package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
)

// Validate returns all that is wrong with the values of c, joined, each a
// *Error. It looks at the values alone, not at the machine.
func (c Config) Validate() error {
	var errs []error
	for _, p := range c.problems() {
		errs = append(errs, p)
	}
	return errors.Join(errs...)
}

// checker collects problems.
type checker struct{ problems []*Error }

func (c *checker) report(key, format string, args ...any) {
	c.problems = append(c.problems, &Error{Key: key, Text: fmt.Sprintf(format, args...)})
}

func (c *checker) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		c.report(key, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
}

func (c *checker) within(key string, value, low, high int, unit string) {
	if value < low || value > high {
		c.report(key, "%d is not between %d and %d%s", value, low, high, unit)
	}
}

// path wants an absolute path without detours, and says whether it is one.
func (c *checker) path(key, value string) bool {
	switch {
	case !filepath.IsAbs(value):
		c.report(key, "%q is not an absolute path", value)
	case filepath.Clean(value) != value:
		c.report(key, "%q is not in its plain form %q", value, filepath.Clean(value))
	case strings.ContainsFunc(value, unicode.IsControl):
		c.report(key, "%q has control characters", value)
	default:
		return true
	}
	return false
}

func (c *checker) optionalPath(key, value string) {
	if value != "" {
		c.path(key, value)
	}
}

func (c Config) problems() []*Error {
	var k checker
	c.Hypervisor.check(&k)
	c.Factory.check(&k)
	c.Runtime.check(&k)
	c.Network.check(&k)
	return k.problems
}

func (h Hypervisor) check(k *checker) {
	k.optionalPath("hypervisor.path", h.Path)
	k.oneOf("hypervisor.machine_type", h.MachineType, "auto", "q35", "microvm")
	k.oneOf("hypervisor.accel", h.Accel, "auto", "kvm", "tcg")
	k.optionalPath("hypervisor.kernel", h.Kernel)
	k.optionalPath("hypervisor.kernel_modules", h.KernelModules)
	if h.KernelModules != "" && h.Kernel == "" {
		k.report("hypervisor.kernel_modules", "is set without hypervisor.kernel, which the modules belong to")
	}
	// The kernel reads 2047 bytes; the driver's own part comes first.
	if len(h.KernelParams) > 1024 {
		k.report("hypervisor.kernel_params", "has %d bytes, more than 1024", len(h.KernelParams))
	}
	if strings.ContainsFunc(h.KernelParams, unicode.IsControl) {
		k.report("hypervisor.kernel_params", "%q has control characters", h.KernelParams)
	}
	k.within("hypervisor.default_vcpus", h.DefaultVCPUs, 1, 255, "")
	k.within("hypervisor.default_memory", h.DefaultMemory, 128, 1<<20, " MiB")
	k.within("hypervisor.overhead_memory", h.OverheadMemory, 0, 1<<16, " MiB")
	k.oneOf("hypervisor.shared_fs", h.SharedFS, "auto", "9p", "virtio-fs")
	k.optionalPath("hypervisor.virtio_fs_daemon", h.VirtioFSDaemon)
	k.oneOf("hypervisor.vsock", h.Vsock, "auto", "on", "off")
	k.oneOf("hypervisor.vhost_net", h.VhostNet, "auto", "on", "off")
}

func (f Factory) check(k *checker) {
	k.within("factory.vm_cache_number", f.VMCacheNumber, 0, 64, "")
	if f.VMCacheNumber > 0 && !f.EnableTemplate {
		k.report("factory.vm_cache_number", "is set without factory.enable_template, of which warm clones are made")
	}
}

func (r Runtime) check(k *checker) {
	dirs := []struct{ key, path string }{
		{"runtime.state_dir", r.StateDir},
		{"runtime.data_dir", r.DataDir},
		{"runtime.cache_dir", r.CacheDir},
	}
	for i, d := range dirs {
		if !k.path(d.key, d.path) {
			continue
		}
		if d.path == "/" {
			k.report(d.key, "must be a directory of our own, not /")
		}
		// Each is cleaned up by its own rules, so none may be in another.
		for _, other := range dirs[:i] {
			if isWithin(d.path, other.path) || isWithin(other.path, d.path) {
				k.report(d.key, "%q and %s %q must not be within one another", d.path, other.key, other.path)
			}
		}
	}
	if k.path("runtime.cgroup_parent", r.CgroupParent) && r.CgroupParent == "/" {
		k.report("runtime.cgroup_parent", "must be a cgroup of our own, not the root")
	}
	k.within("runtime.boot_timeout", r.BootTimeout, 1, 3600, " s")
	k.within("runtime.create_timeout", r.CreateTimeout, 1, 3600, " s")
}

// isWithin reports whether path is dir or below it. The root and what is not
// absolute are reported for themselves, and contain nothing.
func isWithin(path, dir string) bool {
	return path == dir || len(dir) > 1 && strings.HasPrefix(path, dir+"/")
}

func (n Network) check(k *checker) {
	if len(n.CNIBinDirs) == 0 {
		k.report("network.cni_bin_dirs", "is empty, so that no plugin can be found")
	}
	for _, d := range n.CNIBinDirs {
		k.path("network.cni_bin_dirs", d)
	}
	switch p, err := netip.ParsePrefix(n.Subnet); {
	case err != nil:
		k.report("network.subnet", "%q is not a subnet such as 10.87.0.0/16", n.Subnet)
	case !p.Addr().Is4():
		k.report("network.subnet", "%s is not IPv4", p)
	case p.Bits() > 29:
		k.report("network.subnet", "%s has no room for containers; take a prefix of 29 bits or fewer", p)
	case p.Masked() != p:
		k.report("network.subnet", "%s has host bits; did you mean %s?", p, p.Masked())
	}
	// What the kernel takes for an interface's name (dev_valid_name).
	if n.Bridge == "" || len(n.Bridge) > 15 || n.Bridge == "." || n.Bridge == ".." || strings.ContainsAny(n.Bridge, "/: \t\n\v\f\r") {
		k.report("network.bridge", "%q is not an interface name: 1 to 15 characters, no space, slash or colon", n.Bridge)
	}
}
