// Package check looks at the host and says what kata can do on it: whether the
// machine is capable of running containers in virtual machines, whether that
// works at this moment and in which mode, and what to do about what does not.
// It changes nothing. `kata-runtime check` and `kata-runtime env` print what it
// finds.
//
// What belongs to other packages (probing KVM, asking QEMU, finding a guest
// kernel) is passed in as functions.
package check

import (
	"context"
	"path/filepath"
	"runtime"

	"github.com/seed-efd44b36/kata/internal/config"
)

// Status is the outcome of one check.
type Status string

// The statuses. A Warning leaves something out or slow, an Error prevents
// containers from running as configured.
const (
	OK      Status = "ok"
	Warning Status = "warning"
	Error   Status = "error"
)

// Result is what one check found.
type Result struct {
	// Name is a short word for what was looked at, the same in each run.
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Detail says what was found.
	Detail string `json:"detail"`
	// Remedy says what to do; empty when Status is OK.
	Remedy string `json:"remedy,omitempty"`
}

// Mode is what would run the instructions of a guest.
type Mode string

// The modes.
const (
	KVM       Mode = "KVM"
	Emulation Mode = "emulation"
)

// Kernel is the guest kernel that would be used.
type Kernel struct {
	Path, Version, Source string
	// Initrd is empty when it has yet to be built.
	Initrd string
}

// Options say what to check.
type Options struct {
	Config config.Config
	// Problems are those of the configuration; then Config has the defaults.
	Problems []error
	// KVM reports whether /dev/kvm can run a guest, and if not, why.
	KVM func(context.Context) (usable bool, reason string)
	// QEMU returns the path and the version of the VMM.
	QEMU func(context.Context) (path, version string, err error)
	// Kernel finds the guest kernel, without building anything.
	Kernel func(context.Context) (Kernel, error)
	// Root is the directory that is taken for the host's root, "" for "/".
	Root string
	// Arch is the processor's architecture as Go names it, "" for our own.
	Arch string
}

// Report is the outcome of all checks.
type Report struct {
	// Capable: nothing that belongs to the machine or its kernel is missing.
	Capable bool `json:"capable"`
	// CanCreate: Capable, and nothing that can be installed, loaded or granted
	// is missing.
	CanCreate bool     `json:"can_create"`
	Mode      Mode     `json:"mode"`
	Results   []Result `json:"results"`
}

// host is the machine that the checks look at.
type host struct {
	Options
	kvmUsable bool
	kvmReason string
}

func newHost(ctx context.Context, opts Options) *host {
	h := &host{Options: opts}
	if h.Arch == "" {
		h.Arch = runtime.GOARCH
	}
	h.kvmUsable, h.kvmReason = h.KVM(ctx)
	return h
}

// path is where the host's file is.
func (h *host) path(p string) string { return filepath.Join("/", h.Root, p) }

func (h *host) mode() Mode {
	if h.kvmUsable && h.Config.Hypervisor.Accel != "tcg" {
		return KVM
	}
	return Emulation
}

// accelerator is what the mode is called in the configuration.
func (h *host) accelerator() string {
	if h.mode() == KVM {
		return "kvm"
	}
	return "tcg"
}

// Run does all checks, in the order in which their results are read best.
func Run(ctx context.Context, opts Options) Report {
	h := newHost(ctx, opts)
	machine := h.machine()
	present := []Result{
		h.privileges(), h.kvm(), h.vhostVsock(), h.vhostNet(), h.tun(),
		h.qemu(ctx), h.kernel(ctx), h.virtiofsd(), h.cni(), h.memory(), h.directories(),
	}
	for _, p := range opts.Problems {
		present = append(present, Result{
			Name: "configuration", Status: Error, Detail: p.Error(),
			Remedy: "mend it; the other checks are made with the defaults",
		})
	}
	capable := noErrors(machine)
	return Report{
		Capable:   capable,
		CanCreate: capable && noErrors(present),
		Mode:      h.mode(),
		Results:   append(machine, present...),
	}
}

// machine has the checks that belong to the machine and its kernel.
func (h *host) machine() []Result {
	return []Result{h.cpu(), h.namespaces(), h.cgroups(), h.overlay()}
}

func noErrors(results []Result) bool {
	for _, r := range results {
		if r.Status == Error {
			return false
		}
	}
	return true
}

// need turns a lack into an Error when the configuration insists on what is
// lacking, else into a Warning.
func need(insists bool) Status {
	if insists {
		return Error
	}
	return Warning
}
