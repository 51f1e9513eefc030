package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// do carries one request out. What follows the request's line, if anything,
// is read from body.
func do(body io.Reader, name string, args []string) ([]byte, error) {
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	switch name {
	case "echo":
		return []byte(strings.Join(args, " ")), nil
	case "read":
		return os.ReadFile(arg(0))
	case "write":
		return nil, os.WriteFile(arg(0), []byte(arg(1)), 0o644)
	case "chown":
		uid, err := strconv.Atoi(arg(1))
		if err != nil {
			return nil, err
		}
		return nil, os.Chown(arg(0), uid, uid)
	case "rename":
		return nil, os.Rename(arg(0), arg(1))
	case "mkfifo":
		return nil, unix.Mkfifo(arg(0), 0o600)
	case "mount": // TYPE SOURCE DIR OPTIONS
		if err := os.MkdirAll(arg(2), 0o755); err != nil {
			return nil, err
		}
		return nil, unix.Mount(arg(1), arg(2), arg(0), 0, arg(3))
	case "sink": // SIZE: reads so many bytes, answers with their checksum
		n, err := strconv.ParseInt(arg(0), 10, 64)
		if err != nil {
			return nil, err
		}
		h := sha256.New()
		if _, err := io.CopyN(h, body, n); err != nil {
			return nil, err
		}
		return fmt.Appendf(nil, "%x", h.Sum(nil)), nil
	case "wait": // FILE: reads nothing until there is such a file
		return nil, poll(func() bool {
			_, err := os.Stat(arg(0))
			return err == nil
		})
	case "fill": // SIZE: answers with so many bytes
		n, err := strconv.Atoi(arg(0))
		return make([]byte, n), err
	case "disks":
		return disks()
	case "readdisk": // SERIAL SIZE
		return readDisk(arg(0), arg(1))
	case "writedisk": // SERIAL TEXT
		return nil, writeDisk(arg(0), arg(1))
	case "nics":
		return nics()
	case "linkup": // MAC
		return nil, linkUp(arg(0))
	case "panic":
		return nil, os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case "poweroff":
		return nil, unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "reboot":
		return nil, unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	return nil, fmt.Errorf("no request %q", name)
}

// serials returns the disks of the guest by their serial numbers.
func serials() (map[string]string, error) {
	pages, err := filepath.Glob("/sys/block/*/device/vpd_pg80")
	if err != nil {
		return nil, err
	}
	found := make(map[string]string)
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil || len(text) < 4 {
			continue // it went away
		}
		device := filepath.Base(filepath.Dir(filepath.Dir(page)))
		found[strings.TrimSpace(string(text[4:]))] = "/dev/" + device
	}
	return found, nil
}

func disks() ([]byte, error) {
	found, err := serials()
	var b []byte
	for serial, device := range found {
		ro, _ := os.ReadFile("/sys/block/" + filepath.Base(device) + "/ro")
		b = fmt.Appendf(b, "%s ro=%s\n", serial, strings.TrimSpace(string(ro)))
	}
	return b, err
}

func readDisk(serial, size string) ([]byte, error) {
	found, err := serials()
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(size)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(found[serial])
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, n)
	_, err = io.ReadFull(f, b)
	return b, err
}

func writeDisk(serial, text string) error {
	found, err := serials()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(found[serial], os.O_WRONLY|unix.O_SYNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func nics() ([]byte, error) {
	all, err := net.Interfaces()
	var b []byte
	for _, i := range all {
		b = fmt.Appendf(b, "%s mtu=%d\n", i.HardwareAddr, i.MTU)
	}
	return b, err
}

// linkUp brings the NIC with that address up.
func linkUp(mac string) error {
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range all {
		if i.HardwareAddr.String() != mac {
			continue
		}
		socket, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(socket) }()
		request, err := unix.NewIfreq(i.Name)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_UP)
		return unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request)
	}
	return fmt.Errorf("no NIC %s", mac)
}
