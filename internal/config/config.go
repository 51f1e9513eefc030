// Package config reads the configuration: one TOML file with drop-ins, decoded
// strictly, all errors reported at once. The defaults are in this file; each
// field's comment is its manual.
package config

// Config is the whole configuration. Its zero value is not valid: start from
// Default.
type Config struct {
	Hypervisor Hypervisor `toml:"hypervisor"`
	Factory    Factory    `toml:"factory"`
	Runtime    Runtime    `toml:"runtime"`
	Network    Network    `toml:"network"`
}

// Hypervisor says how virtual machines are made.
type Hypervisor struct {
	// Path of QEMU. Empty: qemu-system-x86_64 from PATH.
	Path string `toml:"path"`
	// MachineType is "auto", "q35" or "microvm". Auto takes microvm when the
	// kernel supports it (the tuned one), else q35.
	MachineType string `toml:"machine_type"`
	// Accel is "auto", "kvm" or "tcg". Auto takes KVM where it works.
	Accel string `toml:"accel"`
	// Kernel is a guest kernel (vmlinuz or vmlinux). Empty: the tuned kernel
	// when it was built, else the host's in /boot, else Debian's package.
	Kernel string `toml:"kernel"`
	// KernelModules is the modules directory that belongs to Kernel
	// (…/lib/modules/VERSION). Empty: found beside it.
	KernelModules string `toml:"kernel_modules"`
	// KernelParams is appended to the kernel's command line.
	KernelParams string `toml:"kernel_params"`
	// DefaultVCPUs is the number of virtual CPUs of a sandbox without limits.
	DefaultVCPUs int `toml:"default_vcpus"`
	// DefaultMemory is the memory in MiB of a sandbox without limits.
	DefaultMemory int `toml:"default_memory"`
	// OverheadMemory in MiB is added to the memory limits of a sandbox, for
	// the guest's kernel and agent.
	OverheadMemory int `toml:"overhead_memory"`
	// SharedFS is "auto", "9p" or "virtio-fs". Auto takes virtio-fs where
	// virtiofsd is installed.
	SharedFS string `toml:"shared_fs"`
	// VirtioFSDaemon is the path of virtiofsd. Empty: looked for.
	VirtioFSDaemon string `toml:"virtio_fs_daemon"`
	// Vsock is "auto", "on" or "off": use vhost-vsock instead of virtio-serial.
	Vsock string `toml:"vsock"`
	// VhostNet is "auto", "on" or "off".
	VhostNet string `toml:"vhost_net"`
}

// Factory says what is made ahead of a sandbox.
type Factory struct {
	// EnableTemplate: sandboxes are made from saved machines. The first one of its
	// kind boots, and a template of it is made meanwhile.
	EnableTemplate bool `toml:"enable_template"`
	// VMCacheNumber is how many machines wait for a sandbox, with code that has been
	// run already; 0: none. Each takes memory as a sandbox does.
	VMCacheNumber int `toml:"vm_cache_number"`
}

// Runtime says where things are and how long they may take.
type Runtime struct {
	// StateDir holds running sandboxes; it must be on a tmpfs or be emptied
	// at boot.
	StateDir string `toml:"state_dir"`
	// DataDir holds images and stopped containers of `kata`.
	DataDir string `toml:"data_dir"`
	// CacheDir holds kernels, initrds and templates, all of which can be
	// made again.
	CacheDir string `toml:"cache_dir"`
	// CgroupParent is the host cgroup below which sandboxes of `kata` run.
	CgroupParent string `toml:"cgroup_parent"`
	// BootTimeout in seconds: from the start of the VMM to the agent's first
	// answer.
	BootTimeout int `toml:"boot_timeout"`
	// CreateTimeout in seconds: for the set-up of one container.
	CreateTimeout int `toml:"create_timeout"`
	// Debug makes logs verbose and puts the guest agent's log into them.
	Debug bool `toml:"debug"`
}

// Network is for `kata run` only; under containerd the network is the CRI's.
type Network struct {
	// CNIBinDirs are searched for CNI plugins.
	CNIBinDirs []string `toml:"cni_bin_dirs"`
	// Subnet of the default network, CIDR.
	Subnet string `toml:"subnet"`
	// Bridge of the default network.
	Bridge string `toml:"bridge"`
}

// Default returns the built-in configuration.
func Default() Config {
	return Config{
		Hypervisor: Hypervisor{
			MachineType:    "auto",
			Accel:          "auto",
			DefaultVCPUs:   1,
			DefaultMemory:  512,
			OverheadMemory: 128,
			SharedFS:       "auto",
			Vsock:          "auto",
			VhostNet:       "auto",
		},
		Factory: Factory{EnableTemplate: true},
		Runtime: Runtime{
			StateDir:      "/run/kata",
			DataDir:       "/var/lib/kata",
			CacheDir:      "/var/cache/kata",
			CgroupParent:  "/kata",
			BootTimeout:   60,
			CreateTimeout: 60,
		},
		Network: Network{
			CNIBinDirs: []string{"/usr/lib/cni", "/opt/cni/bin"},
			Subnet:     "10.87.0.0/16",
			Bridge:     "kata0",
		},
	}
}
