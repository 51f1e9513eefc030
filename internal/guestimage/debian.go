package guestimage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// skipModules are parts of a kernel package that are left out: drivers of
// hardware that no guest has, most of the package's 300 MB.
var skipModules = []string{
	"sound", "drivers/gpu", "drivers/media", "drivers/infiniband", "drivers/iio", "drivers/staging",
	"drivers/usb", "drivers/hid", "drivers/hwmon", "drivers/input", "drivers/comedi", "drivers/mtd",
	"drivers/net/ethernet", "drivers/net/wireless", "drivers/bluetooth", "drivers/isdn", "drivers/video",
	"drivers/ata", "drivers/mmc", "net/wireless", "net/mac80211", "net/bluetooth",
}

// maxPackage bounds the unpacked size of a kernel package in bytes.
const maxPackage = 2 << 30

// fetchDebian gets Debian's current kernel package into the cache. It is
// verified by apt, and it is not installed.
func (b *Builder) fetchDebian(ctx context.Context, c cache) (candidate, error) {
	out, err := run(ctx, "", "apt-cache", "depends", debianKernel)
	if err != nil {
		return candidate{}, err
	}
	name := dependency(string(out))
	if name == "" {
		return candidate{}, fmt.Errorf("apt knows no package %s", debianKernel)
	}
	tmp, err := os.MkdirTemp(c.dir, tmpPrefix)
	if err != nil {
		return candidate{}, fmt.Errorf("fetch kernel package: %w", err)
	}
	defer os.RemoveAll(tmp)
	b.progress("fetching %s (about 70 MB)", name)
	if _, err := run(ctx, tmp, "apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", name); err != nil {
		return candidate{}, err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return candidate{}, fmt.Errorf("apt-get download %s left %d packages", name, len(debs))
	}
	b.progress("unpacking %s", name)
	if err := unpackDeb(ctx, debs[0], filepath.Join(tmp, "root")); err != nil {
		return candidate{}, err
	}
	if err := syncFilesystem(tmp); err != nil {
		return candidate{}, fmt.Errorf("store kernel package: %w", err)
	}
	if err := c.publish(filepath.Join(tmp, "root"), filepath.Join("kernel", "debian", name)); err != nil {
		return candidate{}, fmt.Errorf("store kernel package: %w", err)
	}
	dir := c.path("kernel", "debian", name)
	list := hostKernels(filepath.Join(dir, "boot"), filepath.Join(dir, "lib/modules"), "")
	if len(list) == 0 {
		return candidate{}, fmt.Errorf("package %s has no kernel with modules", name)
	}
	list[0].source = sourceDebian
	return list[0], nil
}

// syncFilesystem waits until everything written to the file system of dir is on
// the disk; it is for trees, where a sync of each file would take long.
func syncFilesystem(dir string) error {
	f, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// dependency returns the first kernel package in the output of `apt-cache
// depends`, or "".
func dependency(out string) string {
	for line := range strings.Lines(out) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
		if ok && strings.HasPrefix(name, "linux-image-") && !strings.ContainsAny(name, "/ ") {
			return name
		}
	}
	return ""
}

// unpackDeb unpacks the kernel and its modules from a package into dir, which
// it makes.
func unpackDeb(ctx context.Context, deb, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("unpack kernel package: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack kernel package: %w", err)
	}
	defer root.Close()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("unpack kernel package: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("unpack kernel package: %w", err)
	}
	err = unpackTar(stdout, root)
	if err == nil {
		_, err = io.Copy(io.Discard, stdout)
	}
	stdout.Close()
	if werr := cmd.Wait(); werr != nil && err == nil {
		err = fmt.Errorf("dpkg-deb: %w: %s", werr, tail(stderr.Bytes()))
	}
	if err != nil {
		return fmt.Errorf("unpack kernel package: %w", err)
	}
	return nil
}

// unpackTar writes the regular files of a package that matter below root.
func unpackTar(r io.Reader, root *os.Root) error {
	var total int64
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path.Clean(h.Name), "usr/")
		if h.Typeflag != tar.TypeReg || !kernelFile(name) {
			continue
		}
		if total += h.Size; total > maxPackage {
			return fmt.Errorf("package has more than %d bytes", int64(maxPackage))
		}
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		_, err = io.CopyN(f, tr, h.Size)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
}

// kernelFile reports whether a file of a kernel package is wanted.
func kernelFile(name string) bool {
	if strings.HasPrefix(name, "boot/vmlinuz-") {
		return true
	}
	rest, ok := strings.CutPrefix(name, "lib/modules/")
	if !ok {
		return false
	}
	_, rest, _ = strings.Cut(rest, "/")
	if rest == "modules.builtin" {
		return true
	}
	rest, ok = strings.CutPrefix(rest, "kernel/")
	if !ok {
		return false
	}
	for _, skip := range skipModules {
		if strings.HasPrefix(rest, skip+"/") {
			return false
		}
	}
	return true
}

// run runs a program in dir and returns its output. The error has the end of
// what it printed.
func run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	if _, err := exec.LookPath(name); err != nil {
		return nil, fmt.Errorf("%s is not there: this is not a Debian system", name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, tail(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// tail returns the last lines of a program's output, in one line.
func tail(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "; ")
}
