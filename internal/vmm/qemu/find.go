package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/internal/vmm"
	"golang.org/x/sys/unix"
)

// program is QEMU's name in PATH, versionTimeout how long it may take to say
// its version: its first start has to read 100 libraries from the disk.
const (
	program        = "qemu-system-x86_64"
	versionTimeout = 20 * time.Second
)

// oldest is the first version with all that the driver uses.
var oldest = version{7, 2}

// version is major and minor, the parts that tell what QEMU can do.
type version [2]int

// Path returns the absolute path of QEMU. Configured is a path or "", which
// means the one in PATH. The error says what to do.
func Path(configured string) (string, error) {
	path := configured
	if path == "" {
		found, err := exec.LookPath(program)
		if err != nil {
			return "", fmt.Errorf("find qemu: %w (install qemu-system-x86, or set hypervisor.path)", err)
		}
		path = found
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("find qemu: %w", err)
	}
	return path, nil
}

// Find returns what Path does, and QEMU's version ("7.2.22"), for which it has
// to be run.
func Find(ctx context.Context, configured string) (path, found string, err error) {
	if path, err = Path(configured); err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	ask := exec.CommandContext(ctx, path, "--version")
	ask.Env = []string{}
	out, err := ask.Output()
	if err != nil {
		return "", "", fmt.Errorf("ask %s for its version: %w (is hypervisor.path right?)", path, err)
	}
	found, v, ok := parseVersion(string(out))
	switch {
	case !ok:
		return "", "", fmt.Errorf("%s does not say that it is QEMU (is hypervisor.path right?)", path)
	case v[0] < oldest[0] || v[0] == oldest[0] && v[1] < oldest[1]:
		return "", "", fmt.Errorf("%s is QEMU %s: %d.%d or newer is needed", path, found, oldest[0], oldest[1])
	}
	return path, found, nil
}

// parseVersion reads the first line of QEMU's --version.
func parseVersion(text string) (string, version, bool) {
	match := regexp.MustCompile(`^QEMU emulator version ((\d{1,4})\.(\d{1,4})[0-9.]*)`).FindStringSubmatch(text)
	if match == nil {
		return "", version{}, false
	}
	major, errMajor := strconv.Atoi(match[2])
	minor, errMinor := strconv.Atoi(match[3])
	return strings.TrimSuffix(match[1], "."), version{major, minor}, errors.Join(errMajor, errMinor) == nil
}

// Capabilities returns what the driver can do on this host.
func Capabilities() vmm.Capabilities {
	return vmm.Capabilities{
		Disks:    true,
		VirtioFS: true,
		Vsock:    canOpen("/dev/vhost-vsock"),
		VhostNet: canOpen("/dev/vhost-net"),
	}
}

func canOpen(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}
