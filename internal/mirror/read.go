package mirror

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"golang.org/x/sys/unix"
)

const (
	// maxBytes is how much may be in a volume that is mirrored: it is sent in one
	// call. A ConfigMap or Secret has at most 1 MiB.
	maxBytes = 3 << 20
	// maxFiles is how many files.
	maxFiles = 2000
)

// errUnsuitable is wrapped by errors about volumes that cannot be mirrored.
var errUnsuitable = errors.New("it cannot be copied")

// read reads all that is in a volume.
func read(dir *os.File) ([]*agentv1.VolumeFile, error) {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	var files []*agentv1.VolumeFile
	left := int64(maxBytes)
	err = fs.WalkDir(root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := readOne(root, name, left)
		if err != nil {
			return err
		}
		left -= int64(len(f.GetData()) + len(name))
		if files = append(files, f); len(files) > maxFiles {
			return fmt.Errorf("%w: it has more than %d files", errUnsuitable, maxFiles)
		}
		return nil
	})
	return files, err
}

// readOne reads one file of at most limit bytes.
func readOne(root *os.Root, name string, limit int64) (*agentv1.VolumeFile, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("stat %s: %w", name, errors.ErrUnsupported)
	}
	f := &agentv1.VolumeFile{Path: name, Mode: st.Mode, Uid: st.Uid, Gid: st.Gid}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFLNK:
		to, err := root.Readlink(name)
		if err != nil {
			return nil, err
		}
		f.Data = []byte(to)
	case unix.S_IFREG:
		r, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		if f.Data, err = io.ReadAll(io.LimitReader(r, max(limit, 0)+1)); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
	default:
		return nil, fmt.Errorf("%w: %s is neither a file nor a directory nor a link", errUnsuitable, name)
	}
	if int64(len(f.GetData())+len(name)) > limit {
		return nil, fmt.Errorf("%w: it has more than %d MiB", errUnsuitable, maxBytes>>20)
	}
	return f, nil
}
