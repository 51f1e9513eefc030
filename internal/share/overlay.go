package share

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// overlay is an overlayfs to mount.
type overlay struct {
	lower       []string // uppermost first
	upper, work string   // both empty: read-only
	readonly    bool
	other       []string // options that name no path
	// scratch: upper and work are on a small tmpfs of its own, which ends with
	// the overlay. What is mounted below the only lower directory is shown,
	// too, read-only.
	scratch bool
}

// errRefused is wrapped when the kernel does not make an overlay of the given
// directories.
var errRefused = errors.New("overlayfs refuses it")

// scratchOverlay is an overlay of a directory that is not to be changed.
func scratchOverlay(dir string) overlay {
	return overlay{lower: []string{dir}, scratch: true, other: []string{"index=off", "metacopy=off", "redirect_dir=off"}}
}

func parseOverlay(options []string) (overlay, error) {
	var o overlay
	for _, opt := range options {
		key, value, _ := strings.Cut(opt, "=")
		switch key {
		case "lowerdir":
			o.lower = splitLower(value)
		case "upperdir":
			o.upper = value
		case "workdir":
			o.work = value
		case "ro":
			o.readonly = true
		case "rw":
		case "index", "metacopy", "redirect_dir", "xino", "uuid", "nfs_export", "userxattr", "volatile":
			o.other = append(o.other, opt)
		default:
			return o, fmt.Errorf("option %q %w", opt, errUnsupported)
		}
	}
	paths := o.lower
	if o.upper != "" || o.work != "" {
		paths = append(append([]string(nil), paths...), o.upper, o.work)
	}
	if len(o.lower) == 0 {
		return o, errors.New("option lowerdir is missing")
	}
	for _, p := range paths {
		if !strings.HasPrefix(p, "/") {
			return o, fmt.Errorf("directory %q is not an absolute path", p)
		}
	}
	return o, nil
}

// splitLower splits at colons, but those after a backslash.
func splitLower(s string) []string {
	var (
		out []string
		b   strings.Builder
	)
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case s[i] == ':':
			out = append(out, b.String())
			b.Reset()
		default:
			b.WriteByte(s[i])
		}
	}
	return append(out, b.String())
}

// mount makes the overlay and returns it mounted nowhere. It runs on a thread
// of its own (onHost) and there in a mount namespace that ends with it: mount(2)
// wants a place, and an fsconfig string holds one path of 255 bytes at most.
// The directories are passed as descriptors, so that neither their number (the
// options must fit into a page) nor a colon or comma in a name matters.
func (o overlay) mount() (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return -1, fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return -1, fmt.Errorf("make mounts private: %w", err)
	}
	var opened []int
	defer func() {
		for _, fd := range opened {
			unix.Close(fd)
		}
	}()
	open := func(path string) (string, error) {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", &os.PathError{Op: "open", Path: path, Err: err}
		}
		opened = append(opened, fd)
		return fmt.Sprintf("/proc/self/fd/%d", fd), nil
	}
	lower := make([]string, len(o.lower))
	for i, p := range o.lower {
		var err error
		if lower[i], err = open(p); err != nil {
			return -1, err
		}
	}
	options := append([]string{"lowerdir=" + strings.Join(lower, ":")}, o.other...)
	// Any directory will do, for nobody else sees this namespace.
	at := o.lower[0]
	flags := uintptr(unix.MS_RDONLY)
	var below submounts
	if o.scratch {
		var err error
		if below, err = openSubmounts(at); err != nil {
			return -1, err
		}
		defer below.close()
		fds, err := mountScratch(opened[0])
		if err != nil {
			return -1, err
		}
		opened = append(opened, fds[:]...)
		options = append(options, fmt.Sprintf("upperdir=/proc/self/fd/%d", fds[0]), fmt.Sprintf("workdir=/proc/self/fd/%d", fds[1]))
		flags = 0
	}
	if o.upper != "" {
		upper, err := open(o.upper)
		if err != nil {
			return -1, err
		}
		work, err := open(o.work)
		if err != nil {
			return -1, err
		}
		options = append(options, "upperdir="+upper, "workdir="+work)
		flags = 0
	}
	if o.readonly {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount("overlay", at, "overlay", flags, strings.Join(options, ",")); err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
			return -1, fmt.Errorf("mount: %w: %w", errRefused, err)
		}
		return -1, fmt.Errorf("mount: %w", err)
	}
	if err := below.attach(at); err != nil {
		return -1, err
	}
	return openTree(at, unix.AT_RECURSIVE)
}
