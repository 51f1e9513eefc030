package disk

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// errUnsupported is wrapped by errors about what cannot be given to a guest.
const errUnsupported = unsupported("cannot be given to a virtual machine")

// unsupported is an errors.ErrUnsupported that says it in its own words.
type unsupported string

func (u unsupported) Error() string { return string(u) }

func (unsupported) Unwrap() error { return errors.ErrUnsupported }

// Mount is a file system on a disk, as containerd describes one.
type Mount struct {
	Type, Source string
	Options      []string
}

// options of a mount, divided between host and guest.
type options struct {
	readonly bool     // the disk is
	loop     bool     // the source may be a file
	guest    []string // for the guest's kernel
}

// IsFileSystem tells whether a mount of the given type is of a file system on a
// disk, which the guest mounts.
func IsFileSystem(typ string) bool { return ownOptions(typ) != nil }

// flags are the options of every file system.
func flags() []string {
	return []string{"rw", "nosuid", "nodev", "noexec", "noatime", "relatime", "nodiratime", "sync", "dirsync"}
}

// ownOptions are the options of a file system of the given type that mean in the
// guest what they mean on the host. Others may name a device or a subvolume of
// the host, or change what a container sees of its own files.
func ownOptions(typ string) []string {
	switch typ {
	case "ext4":
		return []string{"discard", "nodiscard", "noload", "barrier", "nobarrier", "data=ordered", "data=writeback", "data=journal", "errors=continue", "errors=remount-ro"}
	case "xfs":
		return []string{"discard", "nodiscard", "nouuid", "norecovery", "noquota", "inode64"}
	case "btrfs":
		return []string{"discard", "discard=async", "discard=sync", "nodiscard"}
	case "erofs":
		return []string{"user_xattr", "nouser_xattr", "acl", "noacl"}
	default:
		return nil
	}
}

// parse divides the options. What is not known is refused by name.
func (m Mount) parse() (options, error) {
	var o options
	own := ownOptions(m.Type)
	if own == nil {
		return o, fmt.Errorf("file system %q %w; use the overlayfs snapshotter", m.Type, errUnsupported)
	}
	if !strings.HasPrefix(m.Source, "/") {
		return o, errors.New("it is not an absolute path")
	}
	o.readonly = m.Type == "erofs" // there is no other
	for _, option := range m.Options {
		switch {
		case option == "":
		case option == "ro":
			o.readonly = true
		case option == "loop":
			o.loop = true
		case slices.Contains(flags(), option) || slices.Contains(own, option):
			o.guest = append(o.guest, option)
		default:
			return o, fmt.Errorf("option %q of a %s file system %w; leave it out, or use the overlayfs snapshotter", option, m.Type, errUnsupported)
		}
	}
	if o.readonly {
		o.guest = append(o.guest, "ro")
	}
	return o, nil
}
