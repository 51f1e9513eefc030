// Package storage mounts what the host gives to the guest: shared directories,
// disks, memory.
package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/disk"
	"github.com/seed-efd44b36/kata/internal/agent/module"
	"golang.org/x/sys/unix"
)

// root is the directory below which the host may have things mounted.
const root = "/run/kata"

// ErrInvalid is wrapped by errors about a description that makes no sense.
var ErrInvalid = errors.New("invalid description of a mount")

// Mount makes the mount that the host describes. It loads the modules and waits
// for the disk that it needs.
func Mount(ctx context.Context, modules *module.Set, s *agentv1.Storage) error {
	if err := mount(ctx, modules, s); err != nil {
		return fmt.Errorf("mount %s storage %q on %s: %w", s.GetDriver(), s.GetSource(), s.GetTarget(), err)
	}
	return nil
}

func mount(ctx context.Context, modules *module.Set, s *agentv1.Storage) error {
	target := s.GetTarget()
	if path.Clean(target) != target || !strings.HasPrefix(target, root+"/") {
		return fmt.Errorf("target is not below %s: %w", root, ErrInvalid)
	}
	source, fstype := s.GetSource(), s.GetFstype()
	var needs []string
	switch s.GetDriver() {
	case "9p":
		fstype = "9p"
		needs = []string{"9pnet_virtio", "9p"}
	case "virtiofs":
		fstype = "virtiofs"
		needs = []string{"virtiofs"}
	case "tmpfs":
		fstype = "tmpfs"
	case "block":
		needs = []string{fstype}
	default:
		return fmt.Errorf("unknown driver: %w", ErrInvalid)
	}
	if err := modules.Load(needs...); err != nil {
		return err
	}
	if s.GetDriver() == "block" {
		d, err := disk.Await(ctx, modules, source)
		if err != nil {
			return err
		}
		source = d.Path
	}
	flags, data := parseOptions(s.GetOptions())
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	err := unix.Mount(source, target, fstype, flags, data)
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("the guest has no file system %s, only ext4, erofs and what its kernel has built in: %w", fstype, err)
	}
	if errors.Is(err, unix.EINVAL) && s.GetDriver() == "block" {
		return fmt.Errorf("there is no file system %s on it, or it is damaged: %w", fstype, err)
	}
	return err
}

// parseOptions divides options into flags and what the file system gets.
func parseOptions(options []string) (flags uintptr, data string) {
	var rest []string
	for _, o := range options {
		switch o {
		case "ro":
			flags |= unix.MS_RDONLY
		case "nosuid":
			flags |= unix.MS_NOSUID
		case "nodev":
			flags |= unix.MS_NODEV
		case "noexec":
			flags |= unix.MS_NOEXEC
		case "noatime":
			flags |= unix.MS_NOATIME
		case "relatime":
			flags |= unix.MS_RELATIME
		case "nodiratime":
			flags |= unix.MS_NODIRATIME
		case "sync":
			flags |= unix.MS_SYNCHRONOUS
		case "dirsync":
			flags |= unix.MS_DIRSYNC
		case "rw", "":
		default:
			rest = append(rest, o)
		}
	}
	return flags, strings.Join(rest, ",")
}

// Unmount undoes Mount, last first. What is still in use goes away when it no
// longer is. What is not mounted is no error.
func Unmount(list []*agentv1.Storage) error {
	var errs []error
	for _, s := range slices.Backward(list) {
		err := unix.Unmount(s.GetTarget(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", s.GetTarget(), err))
			continue
		}
		_ = unix.Rmdir(s.GetTarget()) // an empty directory is no harm
	}
	return errors.Join(errs...)
}
