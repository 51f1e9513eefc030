package runflags

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxProfile in bytes bounds a seccomp profile.
const maxProfile = 4 << 20

// defaultCapabilities are Docker's.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// allCapabilities are those of Linux 5.9 and later.
var allCapabilities = []string{
	"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_ADMIN",
	"CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_RAW", "CAP_PERFMON", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
	"CAP_SETUID", "CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE", "CAP_SYS_NICE",
	"CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG",
	"CAP_WAKE_ALARM",
}

// Capabilities are those of a process of that user with the bounding set: like
// after an exec, only root's are effective.
func Capabilities(bounding []string, uid uint32) *specs.LinuxCapabilities {
	caps := &specs.LinuxCapabilities{Bounding: slices.Clone(bounding)}
	if uid == 0 {
		caps.Permitted, caps.Effective = slices.Clone(bounding), slices.Clone(bounding)
	}
	return caps
}

// bounding works out the set as Docker does: ALL first, then single ones.
func (f *Flags) bounding() ([]string, error) {
	add, addAll, err := capabilityNames("--cap-add", f.CapAdd)
	drop, dropAll, err2 := capabilityNames("--cap-drop", f.CapDrop)
	if err := errors.Join(err, err2); err != nil {
		return nil, err
	}
	base := defaultCapabilities
	switch {
	case addAll && dropAll:
		return nil, errors.New("--cap-add ALL and --cap-drop ALL contradict each other")
	case addAll:
		base = allCapabilities
	case dropAll:
		base = nil
	}
	set := slices.Concat(slices.DeleteFunc(slices.Clone(base), func(c string) bool { return slices.Contains(drop, c) }), add)
	slices.Sort(set)
	return slices.Compact(set), nil
}

func capabilityNames(flag string, values []string) (names []string, all bool, err error) {
	var errs []error
	for _, v := range values {
		for name := range strings.SplitSeq(v, ",") {
			full := strings.ToUpper(strings.TrimSpace(name))
			if full == "ALL" {
				all = true
				continue
			}
			if !strings.HasPrefix(full, "CAP_") {
				full = "CAP_" + full
			}
			if !slices.Contains(allCapabilities, full) {
				errs = append(errs, fmt.Errorf("%s %q: there is no such capability", flag, name))
				continue
			}
			names = append(names, full)
		}
	}
	return names, all, errors.Join(errs...)
}

// security applies capabilities, seccomp and the other --security-opt.
func (f *Flags) security(s *specs.Spec) error {
	set, err := f.bounding()
	if err != nil {
		return err
	}
	s.Process.Capabilities = Capabilities(set, s.Process.User.UID)
	profile := "builtin"
	var errs []error
	for _, opt := range f.SecurityOpts {
		key, value, ok := strings.Cut(opt, "=")
		if !ok { // the old form
			key, value, _ = strings.Cut(opt, ":")
		}
		switch {
		case key == "seccomp" && value != "":
			profile = value
		case key == "no-new-privileges" && (value == "" || value == "true"):
			s.Process.NoNewPrivileges = true
		case key == "no-new-privileges" && value == "false":
			s.Process.NoNewPrivileges = false
		case key == "systempaths" && value == "unconfined":
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		case key == "apparmor" && value == "unconfined", key == "label" && value == "disable":
			// The guest has no security module, so that is how it is.
		default:
			errs = append(errs, fmt.Errorf("--security-opt %q: want seccomp=FILE|unconfined, no-new-privileges or systempaths=unconfined", opt))
		}
	}
	s.Linux.Seccomp, err = seccompProfile(profile, s)
	return errors.Join(append(errs, err)...)
}

// seccompProfile loads a profile in Docker's format. It depends on the
// capabilities in s.
func seccompProfile(name string, s *specs.Spec) (*specs.LinuxSeccomp, error) {
	switch name {
	case "unconfined":
		return nil, nil
	case "builtin", "default":
		p, err := seccomp.GetDefaultProfile(s)
		if err != nil {
			return nil, fmt.Errorf("default seccomp profile: %w", err)
		}
		return p, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("--security-opt seccomp: %w", err)
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, maxProfile+1))
	if err != nil {
		return nil, fmt.Errorf("--security-opt seccomp: %w", err)
	}
	if len(data) > maxProfile || !json.Valid(data) {
		return nil, fmt.Errorf("--security-opt seccomp=%s: not a seccomp profile in JSON", name)
	}
	p, err := seccomp.LoadProfile(string(data), s)
	if err != nil {
		return nil, fmt.Errorf("--security-opt seccomp=%s: %w", name, err)
	}
	if p == nil {
		// Somebody asked for a profile; to run without one would be a surprise.
		return nil, fmt.Errorf("--security-opt seccomp=%s: the profile has neither a default action nor system calls", name)
	}
	return p, nil
}
