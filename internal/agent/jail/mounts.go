package jail

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/agent/jail/rootfs"
	"golang.org/x/sys/unix"
)

// propagations are the options that say how mounts spread.
var propagations = map[string]uintptr{
	"private":     unix.MS_PRIVATE,
	"rprivate":    unix.MS_PRIVATE | unix.MS_REC,
	"slave":       unix.MS_SLAVE,
	"rslave":      unix.MS_SLAVE | unix.MS_REC,
	"shared":      unix.MS_SHARED,
	"rshared":     unix.MS_SHARED | unix.MS_REC,
	"unbindable":  unix.MS_UNBINDABLE,
	"runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// attribute is an option that changes MOUNT_ATTR_* bits. With an "r" in front it is
// about all mounts below as well.
type attribute struct{ set, clear uint64 }

var attributes = map[string]attribute{
	"ro":            {set: unix.MOUNT_ATTR_RDONLY},
	"rw":            {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid":        {set: unix.MOUNT_ATTR_NOSUID},
	"suid":          {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev":         {set: unix.MOUNT_ATTR_NODEV},
	"dev":           {clear: unix.MOUNT_ATTR_NODEV},
	"noexec":        {set: unix.MOUNT_ATTR_NOEXEC},
	"exec":          {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime":    {set: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":      {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow":   {set: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":     {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"relatime":      {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
	"noatime":       {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
	"strictatime":   {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"atime":         {clear: unix.MOUNT_ATTR__ATIME},
	"norelatime":    {clear: unix.MOUNT_ATTR__ATIME},
	"nostrictatime": {clear: unix.MOUNT_ATTR__ATIME},
}

// superblock are options of file systems that all of them know; the empty ones are
// their defaults.
var superblock = map[string]string{
	"sync":       "sync",
	"dirsync":    "dirsync",
	"lazytime":   "lazytime",
	"mand":       "mand",
	"async":      "",
	"nolazytime": "",
	"nomand":     "",
	"loud":       "",
	"silent":     "",
	"defaults":   "",
}

// apply adds an option, which comes after those that are there and so wins over
// them.
func (a attribute) apply(setBits, clearBits *uint64) {
	*setBits = *setBits&^a.clear | a.set
	*clearBits = *clearBits&^a.set | a.clear
}

// newMount translates a mount. Options that are not known are the file system's.
func newMount(s *specs.Mount) (rootfs.Mount, error) {
	m := rootfs.Mount{Target: s.Destination, Type: s.Type}
	if !path.IsAbs(s.Destination) {
		return m, errors.New("destination must be an absolute path")
	}
	if len(s.UIDMappings)+len(s.GIDMappings) > 0 {
		return m, fmt.Errorf("uidMappings: %w", ErrUnsupported)
	}
	bind := s.Type == "bind" || s.Type == "rbind"
	m.Recursive = s.Type == "rbind"
	for _, option := range s.Options {
		if a, ok := attributes[option]; ok {
			a.apply(&m.Set, &m.Clear)
			continue
		}
		if a, ok := attributes[strings.TrimPrefix(option, "r")]; ok && strings.HasPrefix(option, "r") {
			a.apply(&m.SetAll, &m.ClearAll)
			continue
		}
		if p, ok := propagations[option]; ok {
			m.Propagation = append(m.Propagation, p)
			continue
		}
		if flag, ok := superblock[option]; ok {
			if flag != "" {
				m.Data = append(m.Data, flag)
			}
			continue
		}
		switch option {
		case "bind":
			bind = true
		case "rbind":
			bind, m.Recursive = true, true
		case "remount":
			m.Remount = true
		case "tmpcopyup":
			m.CopyUp = true
		case "idmap", "ridmap":
			return m, fmt.Errorf("option %q: %w", option, ErrUnsupported)
		case "":
		default:
			m.Data = append(m.Data, option)
		}
	}
	return m, finish(&m, s, bind)
}

// finish checks the whole of a mount.
func finish(m *rootfs.Mount, s *specs.Mount, bind bool) error {
	switch {
	case m.Remount || bind:
		if len(m.Data) > 0 {
			return fmt.Errorf("option %q means nothing for a bind mount: %w", m.Data[0], ErrUnsupported)
		}
		if m.CopyUp {
			return errors.New("option \"tmpcopyup\" is for a tmpfs")
		}
		m.Type = ""
		if m.Remount {
			return nil
		}
		if !path.IsAbs(s.Source) {
			return errors.New("source of a bind mount must be an absolute path")
		}
		m.Source = path.Clean(s.Source)
		return nil
	case m.Type == "":
		return errors.New("type is missing")
	case m.Type != "tmpfs" && m.CopyUp:
		return errors.New("option \"tmpcopyup\" is for a tmpfs")
	}
	if !fileSystems[m.Type] {
		return fmt.Errorf("type %q: %w", m.Type, ErrUnsupported)
	}
	// On a new mount there is nothing to clear, and nothing below.
	m.Name = s.Source
	m.Set |= m.SetAll
	m.Clear, m.SetAll, m.ClearAll = 0, 0, 0
	return nil
}

// fileSystems are those that a container may have made: the ones without a source.
// All others are mounted by the agent or the host and then bound.
var fileSystems = map[string]bool{
	"proc":   true,
	"sysfs":  true,
	"tmpfs":  true,
	"devpts": true,
	"mqueue": true,
	"cgroup": true, "cgroup2": true,
}
