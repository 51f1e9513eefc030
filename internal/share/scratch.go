package share

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountScratch mounts a small tmpfs on the directory at and returns two
// directories of it: one like the directory itself, and an empty one.
func mountScratch(at int) (fds [2]int, err error) {
	mnt, err := newTmpfs()
	if err != nil {
		return fds, err
	}
	defer unix.Close(mnt)
	// Overlayfs takes what is mounted in the caller's namespace only.
	if err := attach(mnt, at); err != nil {
		return fds, err
	}
	for _, name := range []string{"upper", "work"} {
		if err := unix.Mkdirat(mnt, name, 0o700); err != nil {
			return fds, fmt.Errorf("mkdir %s: %w", name, err)
		}
	}
	if err := likeDirectory(mnt, "upper", at); err != nil {
		return fds, err
	}
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if fds[0], err = unix.Openat(mnt, "upper", flags, 0); err != nil {
		return fds, fmt.Errorf("open upper: %w", err)
	}
	if fds[1], err = unix.Openat(mnt, "work", flags, 0); err != nil {
		unix.Close(fds[0])
		return fds, fmt.Errorf("open work: %w", err)
	}
	return fds, nil
}

// likeDirectory gives name in dir the owner, mode and times of the directory
// like.
func likeDirectory(dir int, name string, like int) error {
	var st unix.Stat_t
	if err := unix.Fstat(like, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if err := unix.Fchownat(dir, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown %s: %w", name, err)
	}
	if err := unix.Fchmodat(dir, name, st.Mode&0o7777, 0); err != nil {
		return fmt.Errorf("chmod %s: %w", name, err)
	}
	if err := unix.UtimesNanoAt(dir, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times of %s: %w", name, err)
	}
	return nil
}

// submounts are clones of what is mounted below a directory.
type submounts []submount

type submount struct {
	path string // from the directory
	tree int
}

// openSubmounts clones what is mounted below dir, each mount read-only.
func openSubmounts(dir string) (subs submounts, err error) {
	defer func() {
		if err != nil {
			subs.close()
		}
	}()
	if dir, err = mountPath(dir); err != nil {
		return nil, err
	}
	if dir == "/" {
		return nil, fmt.Errorf("it is the root directory, on which nothing can be mounted: %w", errRefused)
	}
	info, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(info)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		// The kernel writes four characters as octal numbers.
		point := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
		path, ok := strings.CutPrefix(point, strings.TrimSuffix(dir, "/")+"/")
		if !ok || path == "" {
			continue
		}
		tree, err := openTree(point, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue // another mount hides it
		}
		if err != nil {
			return subs, err
		}
		subs = append(subs, submount{path: path, tree: tree})
		if err := setAttr(tree, unix.MOUNT_ATTR_RDONLY, 0, 0); err != nil {
			return subs, err
		}
	}
	return subs, nil
}

// mountPath is the path of a directory as mountinfo has it: over no link.
func mountPath(dir string) (string, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	return os.Readlink(fmt.Sprintf("/proc/thread-self/fd/%d", fd))
}

// attach mounts them at their paths below dir.
func (s submounts) attach(dir string) error {
	for _, m := range s {
		at := filepath.Join(dir, m.path)
		if err := unix.MoveMount(m.tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return &os.PathError{Op: "move_mount", Path: at, Err: err}
		}
	}
	return nil
}

func (s submounts) close() {
	for _, m := range s {
		unix.Close(m.tree)
	}
}
