// Package runflags turns the flags of `kata run`, which are those of `docker
// run`, and an image's configuration into an OCI runtime spec.
//
// A command registers [Flags] and, when it has the image, calls [Flags.Plan].
// Nothing is started, mounted or fetched here. The image is not trusted: what
// is read of it (its list of users) comes through [Files], and what it asks
// for is checked like a flag.
package runflags

import (
	"github.com/spf13/pflag"
)

// Flags are the values of the flags as they were given; each is checked by
// [Flags.Plan] only, so that the message can name flag and value.
type Flags struct {
	Interactive bool
	TTY         bool
	Detach      bool
	Remove      bool
	Name        string

	Env        []string
	EnvFiles   []string
	Workdir    string
	User       string
	GroupAdd   []string
	Entrypoint string
	StopSignal string

	Hostname string
	Network  string
	Publish  []string
	DNS      []string
	Sysctls  []string

	Memory    string
	CPUs      float64
	PidsLimit int64
	ShmSize   string
	Ulimits   []string

	ReadOnly bool
	Volumes  []string
	Tmpfs    []string
	Devices  []string

	DeviceReadBps, DeviceWriteBps   []string
	DeviceReadIOps, DeviceWriteIOps []string

	CapAdd       []string
	CapDrop      []string
	SecurityOpts []string

	// entrypointSet tells `--entrypoint ""` from no flag.
	set *pflag.FlagSet
}

// Register adds the flags to set. Like docker's, they end at the first word
// that is none: the image.
func (f *Flags) Register(set *pflag.FlagSet) {
	f.set = set
	set.SetInterspersed(false)

	set.BoolVarP(&f.Interactive, "interactive", "i", false, "give the container this standard input")
	set.BoolVarP(&f.TTY, "tty", "t", false, "give the container a terminal")
	set.BoolVarP(&f.Detach, "detach", "d", false, "run in the background and print the container's id")
	set.BoolVar(&f.Remove, "rm", false, "remove the container when it has ended")
	set.StringVar(&f.Name, "name", "", "name of the container")

	set.StringArrayVarP(&f.Env, "env", "e", nil, "set an environment variable (NAME=VALUE, or NAME to pass it on)")
	set.StringArrayVar(&f.EnvFiles, "env-file", nil, "read environment variables from a file")
	set.StringVarP(&f.Workdir, "workdir", "w", "", "working directory")
	set.StringVarP(&f.User, "user", "u", "", "user (name or uid, with :group)")
	set.StringArrayVar(&f.GroupAdd, "group-add", nil, "further groups of the user (name or gid)")
	set.StringVar(&f.Entrypoint, "entrypoint", "", "command to run instead of the image's entry point")
	set.StringVar(&f.StopSignal, "stop-signal", "", "signal that kata stop sends first")

	set.StringVarP(&f.Hostname, "hostname", "h", "", "host name (default: the container's id)")
	set.StringVar(&f.Network, "network", DefaultNetwork, "network to join: none, "+DefaultNetwork+", or the name of a CNI network")
	set.StringArrayVarP(&f.Publish, "publish", "p", nil, "forward a port: [ADDRESS:]HOSTPORT:PORT[/tcp|udp]")
	set.StringArrayVar(&f.DNS, "dns", nil, "address of a name server")
	set.StringArrayVar(&f.Sysctls, "sysctl", nil, "kernel parameter (NAME=VALUE)")

	set.StringVarP(&f.Memory, "memory", "m", "", "memory limit (for example 256m)")
	set.Float64Var(&f.CPUs, "cpus", 0, "number of CPUs (for example 1.5)")
	set.Int64Var(&f.PidsLimit, "pids-limit", 0, "number of processes (0 or -1: no limit)")
	set.StringVar(&f.ShmSize, "shm-size", "64m", "size of /dev/shm")
	set.StringArrayVar(&f.Ulimits, "ulimit", nil, "resource limit (NAME=SOFT[:HARD])")

	set.BoolVar(&f.ReadOnly, "read-only", false, "make the root file system read-only")
	set.StringArrayVarP(&f.Volumes, "volume", "v", nil, "mount a directory, file or named volume: SOURCE:PATH[:ro]")
	set.StringArrayVar(&f.Tmpfs, "tmpfs", nil, "mount a file system in memory: PATH[:OPTIONS]")
	set.StringArrayVar(&f.Devices, "device", nil, "give a block device of the host: SOURCE[:PATH][:rwm]")
	set.StringArrayVar(&f.DeviceReadBps, "device-read-bps", nil, "limit what is read of a device each second: SOURCE:BYTES")
	set.StringArrayVar(&f.DeviceWriteBps, "device-write-bps", nil, "limit what is written to a device each second: SOURCE:BYTES")
	set.StringArrayVar(&f.DeviceReadIOps, "device-read-iops", nil, "limit the reads of a device each second: SOURCE:NUMBER")
	set.StringArrayVar(&f.DeviceWriteIOps, "device-write-iops", nil, "limit the writes to a device each second: SOURCE:NUMBER")

	set.StringArrayVar(&f.CapAdd, "cap-add", nil, "add a capability, or ALL")
	set.StringArrayVar(&f.CapDrop, "cap-drop", nil, "drop a capability, or ALL")
	set.StringArrayVar(&f.SecurityOpts, "security-opt", nil, "seccomp=FILE|unconfined, no-new-privileges, systempaths=unconfined")
}

func (f *Flags) changed(name string) bool { return f.set != nil && f.set.Changed(name) }
