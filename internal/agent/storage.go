package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"golang.org/x/sys/unix"
)

// storageRoot is the directory below which the host may have things mounted.
const storageRoot = "/run/kata"

// diskTimeout is how long a disk may take to appear.
const diskTimeout = 10 * time.Second

// mountStorage makes the mount that the host describes.
func (a *Agent) mountStorage(ctx context.Context, s *agentv1.Storage) error {
	if err := a.tryMountStorage(ctx, s); err != nil {
		return fmt.Errorf("mount %s storage %q on %s: %w", s.GetDriver(), s.GetSource(), s.GetTarget(), err)
	}
	return nil
}

func (a *Agent) tryMountStorage(ctx context.Context, s *agentv1.Storage) error {
	target := s.GetTarget()
	if path.Clean(target) != target || !strings.HasPrefix(target, storageRoot+"/") {
		return fmt.Errorf("target is not below %s: %w", storageRoot, errInvalid)
	}
	source, fstype := s.GetSource(), s.GetFstype()
	var modules []string
	switch s.GetDriver() {
	case "9p":
		fstype = "9p"
		modules = []string{"9pnet_virtio", "9p"}
	case "virtiofs":
		fstype = "virtiofs"
		modules = []string{"virtiofs"}
	case "tmpfs":
		fstype = "tmpfs"
	case "block":
		modules = []string{"virtio_scsi", "sd_mod", fstype}
	default:
		return fmt.Errorf("unknown driver: %w", errInvalid)
	}
	if err := a.modules.Load(modules...); err != nil {
		return err
	}
	if s.GetDriver() == "block" {
		dev, err := awaitDisk(ctx, source)
		if err != nil {
			return err
		}
		source = dev
	}
	flags, data := mountOptions(s.GetOptions())
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return unix.Mount(source, target, fstype, flags, data)
}

// mountOptions divides options into flags and what the file system gets.
func mountOptions(options []string) (flags uintptr, data string) {
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

// unmountStorages undoes mountStorage, last first. What is still in use goes
// away when it no longer is.
func unmountStorages(list []*agentv1.Storage) error {
	var errs []error
	for _, s := range slices.Backward(list) {
		err := unix.Unmount(s.GetTarget(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", s.GetTarget(), err))
		}
	}
	return errors.Join(errs...)
}

// awaitDisk waits for the disk with the given serial number and returns the
// path of its device.
func awaitDisk(ctx context.Context, serial string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		if name := findDisk("/sys/block", serial); name != "" {
			return "/dev/" + name, nil
		}
		if err := pause(ctx, wait); err != nil {
			return "", fmt.Errorf("no disk with serial number %q: %w", serial, err)
		}
	}
}

// findDisk returns the name of the disk with the serial number, or "".
func findDisk(block, serial string) string {
	disks, err := os.ReadDir(block)
	if err != nil || serial == "" {
		return ""
	}
	for _, d := range disks {
		dir := filepath.Join(block, d.Name())
		if b, err := os.ReadFile(filepath.Join(dir, "serial")); err == nil && string(bytes.TrimSpace(b)) == serial {
			return d.Name() // virtio-blk
		}
		if b, err := os.ReadFile(filepath.Join(dir, "device/vpd_pg80")); err == nil && scsiSerial(b) == serial {
			return d.Name()
		}
	}
	return ""
}

// scsiSerial returns the serial number in a SCSI unit serial number page.
func scsiSerial(page []byte) string {
	if len(page) < 4 {
		return ""
	}
	n := int(binary.BigEndian.Uint16(page[2:]))
	return string(bytes.TrimSpace(page[4:min(4+n, len(page))]))
}
