package check

import (
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// cpu looks for the virtualization of the processor, of whichever family.
func (h *host) cpu() Result {
	cpuinfo, err := os.ReadFile(h.path("/proc/cpuinfo"))
	if err != nil {
		return Result{"cpu", Error, err.Error(), "mount /proc"}
	}
	found, lacks := virtualization(h.Arch, string(cpuinfo), h.exists("/dev/kvm"))
	if found != "" {
		return Result{"cpu", OK, found, ""}
	}
	if h.kvmUsable {
		return Result{"cpu", OK, lacks + ", yet /dev/kvm runs guests", ""}
	}
	remedy := "enable virtualization in the firmware; until then guests are emulated, which is slower"
	if inVM(string(cpuinfo)) {
		remedy = "this is a virtual machine: enable nested virtualization on its host; until then guests are emulated, which is slower"
	}
	return Result{"cpu", need(h.Config.Hypervisor.Accel == "kvm"), lacks, remedy}
}

// virtualization names the virtualization that the processor has, or what it
// lacks. Arm and Power do not show it in cpuinfo, so that the device of KVM,
// which their kernels make only where it works, stands in for it.
func virtualization(arch, cpuinfo string, kvmDevice bool) (found, lacks string) {
	switch arch {
	case "amd64", "386":
		flags := strings.Fields(field(cpuinfo, "flags"))
		switch {
		case slices.Contains(flags, "vmx"):
			return "Intel VT-x (vmx)", ""
		case slices.Contains(flags, "svm"):
			return "AMD-V (svm)", ""
		}
		return "", "neither Intel VT-x (vmx) nor AMD-V (svm) among the processor's flags"
	case "arm64", "arm":
		if kvmDevice {
			return "Arm virtualization (the kernel started in Hyp mode, EL2)", ""
		}
		return "", "the kernel did not start in Arm's Hyp mode (EL2), or has no KVM"
	case "ppc64le", "ppc64":
		platform := field(cpuinfo, "platform")
		if kvmDevice || platform == "PowerNV" {
			return "IBM Power (" + platform + ")", ""
		}
		return "", "no KVM on this IBM Power platform (" + platform + ")"
	case "s390x":
		if slices.Contains(strings.Fields(field(cpuinfo, "features")), "sie") {
			return "IBM Z (sie)", ""
		}
		return "", "no interpretive execution (sie) among the features of this IBM Z"
	}
	return "", "virtualization of " + arch + " is not known"
}

// inVM reports whether the processor says that it is a virtual one.
func inVM(cpuinfo string) bool {
	return slices.Contains(strings.Fields(field(cpuinfo, "flags")), "hypervisor")
}

// field returns the first value of a "name : value" line, as in cpuinfo and in
// /proc/PID/status.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func (h *host) namespaces() Result {
	var missing []string
	for _, ns := range []string{"mnt", "net", "pid"} {
		if !h.exists("/proc/self/ns/" + ns) {
			missing = append(missing, ns)
		}
	}
	if len(missing) > 0 {
		return Result{"namespaces", Error, "the kernel lacks namespaces: " + strings.Join(missing, ", "), "boot a kernel that has them"}
	}
	return Result{"namespaces", OK, "mnt, net and pid", ""}
}

func (h *host) cgroups() Result {
	const dir = "/sys/fs/cgroup"
	wanted := []string{"cpu", "memory", "pids"}
	var layout string
	var have []string
	if h.exists(dir + "/cgroup.controllers") {
		layout = "version 2"
		list, err := os.ReadFile(h.path(dir + "/cgroup.controllers"))
		if err != nil {
			return Result{"cgroups", Warning, err.Error(), "run as root"}
		}
		have = strings.Fields(string(list))
	} else {
		layout = "version 1"
		if h.exists(dir + "/unified/cgroup.controllers") {
			layout = "version 1 with a version 2 tree beside it"
		}
		for _, c := range wanted {
			if h.exists(dir + "/" + c) {
				have = append(have, c)
			}
		}
	}
	var missing []string
	for _, c := range wanted {
		if !slices.Contains(have, c) {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		return Result{
			"cgroups", Warning, layout + ", without the controllers " + strings.Join(missing, ", "),
			"enable them (mount them, or +NAME into cgroup.subtree_control); until then these limits hold in the guest only",
		}
	}
	return Result{"cgroups", OK, layout + ": " + strings.Join(wanted, ", "), ""}
}

func (h *host) overlay() Result {
	list, err := os.ReadFile(h.path("/proc/filesystems"))
	if err == nil && slices.Contains(strings.Fields(string(list)), "overlay") {
		return Result{"overlayfs", OK, "the kernel has it", ""}
	}
	if h.hasModule("overlay") {
		return Result{"overlayfs", OK, "a module that is loaded when it is needed", ""}
	}
	return Result{"overlayfs", Error, "the kernel has neither overlayfs nor its module", "run: modprobe overlay, or boot a kernel with CONFIG_OVERLAY_FS"}
}

// hasModule reports whether the running kernel's modules include the named one.
func (h *host) hasModule(name string) bool {
	release, err := os.ReadFile(h.path("/proc/sys/kernel/osrelease"))
	if err != nil {
		return false
	}
	deps, err := os.ReadFile(h.path("/lib/modules/" + strings.TrimSpace(string(release)) + "/modules.dep"))
	return err == nil && strings.Contains(string(deps), "/"+name+".ko")
}

func (h *host) exists(path string) bool {
	return unix.Access(h.path(path), unix.F_OK) == nil
}
