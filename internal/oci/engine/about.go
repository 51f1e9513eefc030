package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/features"
	"github.com/spf13/cobra"
)

// CheckRootless refuses what takes root: the value of --rootless.
func CheckRootless(value string) error {
	switch value {
	case "", "auto", "false":
		return nil
	default:
		return errors.New("--rootless: a virtual machine's network devices, mounts and cgroups need root on the host; run the engine as root, or take another runtime")
	}
}

func (a *Verbs) featuresCommand() *cobra.Command {
	return &cobra.Command{
		Use:         "features",
		Short:       "Print what this runtime can do, as the OCI runtime spec has it",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{NoConfig: "true"},
		RunE: func(*cobra.Command, []string) error {
			enc := json.NewEncoder(a.Out)
			enc.SetIndent("", "    ")
			return enc.Encode(features.OCI())
		},
	}
}

func (a *Verbs) specCommand() *cobra.Command {
	var bundle string
	var rootless bool
	cmd := &cobra.Command{
		Use:         "spec",
		Short:       "Write a config.json to begin with",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{NoConfig: "true"},
		RunE: func(*cobra.Command, []string) error {
			if rootless {
				return CheckRootless("true")
			}
			b, err := json.MarshalIndent(example(), "", "\t")
			if err != nil {
				return fmt.Errorf("encode spec: %w", err)
			}
			f, err := os.OpenFile(filepath.Join(bundle, "config.json"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
			if errors.Is(err, fs.ErrExist) {
				return errors.New("File config.json exists. Remove it first") //nolint:staticcheck // runc's text
			}
			if err != nil {
				return fmt.Errorf("spec: %w", err)
			}
			_, err = f.Write(b)
			return errors.Join(err, f.Close())
		},
	}
	cmd.Flags().StringVarP(&bundle, "bundle", "b", "", "`directory` to write it to (default: this one)")
	cmd.Flags().BoolVar(&rootless, "rootless", false, "refused: virtual machines need root on the host")
	return cmd
}

// example is a container with a shell.
func example() *specs.Spec {
	caps := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Terminal: true, Args: []string{"sh"}, Cwd: "/", NoNewPrivileges: true,
			Env:          []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Root:     &specs.Root{Path: "rootfs", Readonly: true},
		Hostname: "kata",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.CgroupNamespace},
			},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}
