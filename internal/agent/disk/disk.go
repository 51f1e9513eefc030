// Package disk finds the disks that the host attaches to the machine. They come
// while it runs, and are known by their serial numbers, which the host gives.
package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/internal/agent/await"
	"github.com/seed-efd44b36/kata/internal/agent/module"
	"golang.org/x/sys/unix"
)

const (
	// comeTimeout is how long a disk may take to appear.
	comeTimeout = 10 * time.Second
	// freeTimeout is how long what uses a disk may take to let go of it.
	freeTimeout = 3 * time.Second
)

// Disk is a disk that is there.
type Disk struct {
	// Path of its node in the guest's /dev.
	Path string
	// Major and Minor are its number in this guest.
	Major, Minor uint32
}

// Await waits for the disk with the given serial number, for which it loads the
// drivers.
func Await(ctx context.Context, modules *module.Set, serial string) (Disk, error) {
	if err := Load(modules); err != nil {
		return Disk{}, err
	}
	var (
		d       Disk
		scanned bool
	)
	err := await.Until(ctx, comeTimeout, func() (bool, error) {
		name := find("/sys/block", serial)
		if name == "" && !scanned {
			scanned = true
			return false, scan()
		}
		if name == "" {
			return false, nil
		}
		text, err := os.ReadFile(filepath.Join("/sys/block", name, "dev"))
		if err != nil {
			return false, nil //nolint:nilerr // it comes, or it goes
		}
		if d.Major, d.Minor, err = parseNumber(string(text)); err != nil {
			return false, err
		}
		// The kernel shows it a moment before it can be opened.
		d.Path = "/dev/" + name
		return open(d.Path, 0) == nil, nil
	})
	if err != nil {
		return Disk{}, fmt.Errorf("no disk with serial number %q: %w", serial, err)
	}
	return d, nil
}

// Load loads the drivers, for disks that come later. The host has all disks on one target; a kernel that
// looks for itself tries all 256, which takes 0.1 s when it is emulated.
func Load(modules *module.Set) error {
	if err := modules.Load("scsi_mod"); err != nil {
		return err
	}
	// A kernel without the file has no SCSI at all, which the next call tells.
	if err := os.WriteFile("/sys/module/scsi_mod/parameters/scan", []byte("manual"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for disks when told only: %w", err)
	}
	return modules.Load("virtio_scsi", "sd_mod")
}

// scan looks for disks that came before the driver was there. Of others the host
// tells it.
func scan() error {
	hosts, err := filepath.Glob("/sys/class/scsi_host/host*/scan")
	if err != nil {
		return err
	}
	for _, h := range hosts {
		if err := os.WriteFile(h, []byte("0 0 -"), 0); err != nil { // channel, target, any unit
			return fmt.Errorf("look for disks: %w", err)
		}
	}
	return nil
}

// AwaitUnused waits until no file system and nothing else of the kernel holds
// the disk: what had been written to it is then with the host.
func AwaitUnused(ctx context.Context, serial string) error {
	name := find("/sys/block", serial)
	if name == "" {
		return nil
	}
	err := await.Until(ctx, freeTimeout, func() (bool, error) {
		err := open("/dev/"+name, unix.O_EXCL)
		if errors.Is(err, unix.EBUSY) {
			return false, nil
		}
		return true, err
	})
	if err != nil {
		return fmt.Errorf("disk with serial number %q is not free: %w", serial, err)
	}
	return nil
}

// open opens a device and closes it again.
func open(path string, flags int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// find returns the name of the disk with the serial number, or "".
func find(block, serial string) string {
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

// parseNumber parses "8:16\n".
func parseNumber(text string) (major, minor uint32, err error) {
	a, b, ok := strings.Cut(strings.TrimSpace(text), ":")
	x, xerr := strconv.ParseUint(a, 10, 12)
	y, yerr := strconv.ParseUint(b, 10, 20)
	if err := errors.Join(xerr, yerr); err != nil || !ok {
		return 0, 0, fmt.Errorf("device number %q: %w", text, errors.Join(unix.EINVAL, err))
	}
	return uint32(x), uint32(y), nil
}
