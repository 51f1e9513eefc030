package check

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/seed-efd44b36/kata/internal/version"
)

// EnvFormat is the version of Env's layout: its first number changes when a
// program that reads it would have to change.
const EnvFormat = "1.0.27"

// Env is what `kata-runtime env` prints. Names and sections are those of
// upstream's kata-env, so that scripts find their way; sections of what does not
// exist here are left out.
type Env struct {
	Kernel     EnvKernel
	Meta       EnvMeta
	Initrd     EnvInitrd
	Hypervisor EnvHypervisor
	Runtime    EnvRuntime
	Host       EnvHost
	Agent      EnvAgent
}

// EnvKernel is the guest kernel; empty when none is found.
type EnvKernel struct {
	Path       string
	Parameters string
	Version    string
	Source     string
}

// EnvMeta has EnvFormat.
type EnvMeta struct {
	Version string
}

// EnvInitrd is the guest's image; empty when it has yet to be built.
type EnvInitrd struct {
	Path string
}

// EnvHypervisor is the VMM as configured and found.
type EnvHypervisor struct {
	MachineType    string
	Version        string
	Path           string
	Accelerator    string
	SharedFS       string
	VirtioFSDaemon string
	Debug          bool
}

// EnvRuntime is this program and its configuration.
type EnvRuntime struct {
	Path    string
	Debug   bool
	Config  EnvConfig
	Version EnvRuntimeVersion
}

// EnvConfig names the configuration file, empty for the defaults.
type EnvConfig struct {
	Path string
}

// EnvRuntimeVersion is the version of this program and of the OCI runtime
// specification that it follows.
type EnvRuntimeVersion struct {
	OCI     string
	Version EnvVersion
}

// EnvVersion is a version in one piece and in parts.
type EnvVersion struct {
	Semver string
	Commit string
	Major  int
	Minor  int
	Patch  int
}

// EnvHost is the machine.
type EnvHost struct {
	Kernel             string
	Architecture       string
	VMContainerCapable bool
	SupportVSocks      bool
	Distro             EnvDistro
	CPU                EnvCPU
	Memory             EnvMemory
}

// EnvDistro is the distribution of the host.
type EnvDistro struct {
	Name    string
	Version string
}

// EnvCPU is the processor of the host.
type EnvCPU struct {
	Vendor string
	Model  string
	CPUs   int
}

// EnvMemory is the memory of the host, in KiB.
type EnvMemory struct {
	Total     int64
	Available int64
}

// EnvAgent is how the agent is run.
type EnvAgent struct {
	Debug bool
}

// Binary is what Environment tells of the calling program.
type Binary struct {
	// Path of the program, OCI the version of the specification it follows.
	Path, OCI string
	// ConfigFile is the configuration that was read, empty for the defaults.
	ConfigFile string
}

// Environment collects what there is. What is not found stays empty: check says
// why, this does not fail.
func Environment(ctx context.Context, opts Options, binary Binary) Env {
	h := newHost(ctx, opts)
	conf := opts.Config
	env := Env{
		Meta: EnvMeta{Version: EnvFormat},
		Hypervisor: EnvHypervisor{
			MachineType: conf.Hypervisor.MachineType,
			Accelerator: h.accelerator(),
			SharedFS:    conf.Hypervisor.SharedFS,
			Debug:       conf.Runtime.Debug,
		},
		Runtime: EnvRuntime{
			Path:    binary.Path,
			Debug:   conf.Runtime.Debug,
			Config:  EnvConfig{Path: binary.ConfigFile},
			Version: EnvRuntimeVersion{OCI: binary.OCI, Version: semver()},
		},
		Host:  h.describe(),
		Agent: EnvAgent{Debug: conf.Runtime.Debug},
	}
	if path, v, err := h.QEMU(ctx); err == nil {
		env.Hypervisor.Path, env.Hypervisor.Version = path, v
	}
	if k, err := h.Kernel(ctx); err == nil {
		env.Kernel = EnvKernel{Path: k.Path, Version: k.Version, Source: k.Source, Parameters: conf.Hypervisor.KernelParams}
		env.Initrd.Path = k.Initrd
	}
	env.Hypervisor.VirtioFSDaemon, _ = h.findVirtiofsd()
	env.Host.VMContainerCapable = noErrors(h.machine())
	return env
}

// semver takes the version apart; parts that are not numbers are 0.
func semver() EnvVersion {
	v := EnvVersion{Semver: version.Version, Commit: version.Commit}
	core, _, _ := strings.Cut(version.Version, "-")
	parts := strings.Split(core, ".")
	for i, target := range []*int{&v.Major, &v.Minor, &v.Patch} {
		if i < len(parts) {
			*target, _ = strconv.Atoi(parts[i])
		}
	}
	return v
}

func (h *host) describe() EnvHost {
	read := func(path string) string {
		data, err := os.ReadFile(h.path(path))
		if err != nil {
			return ""
		}
		return string(data)
	}
	cpuinfo, meminfo, osRelease := read("/proc/cpuinfo"), read("/proc/meminfo"), read("/etc/os-release")
	cpus := 0
	for line := range strings.Lines(cpuinfo) {
		if strings.HasPrefix(line, "processor") {
			cpus++
		}
	}
	return EnvHost{
		Kernel:        strings.TrimSpace(read("/proc/sys/kernel/osrelease")),
		Architecture:  h.Arch,
		SupportVSocks: h.exists("/dev/vhost-vsock"),
		Distro:        EnvDistro{Name: shellValue(osRelease, "NAME"), Version: shellValue(osRelease, "VERSION_ID")},
		CPU:           EnvCPU{Vendor: field(cpuinfo, "vendor_id"), Model: field(cpuinfo, "model name"), CPUs: cpus},
		Memory:        EnvMemory{Total: memKiB(meminfo, "MemTotal"), Available: memKiB(meminfo, "MemAvailable")},
	}
}

// shellValue returns a value of os-release.
func shellValue(text, name string) string {
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && key == name {
			return strings.Trim(value, `"'`)
		}
	}
	return ""
}

// WriteTOML writes the environment as TOML.
func (e Env) WriteTOML(w io.Writer) error {
	return toml.NewEncoder(w).SetIndentTables(true).Encode(e)
}

// WriteJSON writes the environment as JSON.
func (e Env) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(e)
}
