package mirror

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
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

var (
	// errUnsuitable is wrapped by errors about volumes that cannot be mirrored.
	errUnsuitable = errors.New("it cannot be copied")
	errMany       = fmt.Errorf("%w: it has more than %d files", errUnsuitable, maxFiles)
)

// reader reads a volume. What is in there may change at any time, by hands that
// must not make us open anything but files and directories.
type reader struct {
	root  *os.Root
	left  int64 // bytes that there may still be
	files []*agentv1.VolumeFile
}

// read reads all that is in a volume.
func read(dir *os.File) ([]*agentv1.VolumeFile, error) {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	r := reader{root: root, left: maxBytes}
	err = r.add(".")
	return r.files, err
}

// add reads a file, or a directory with all that is in it.
func (r *reader) add(name string) error {
	info, err := r.root.Lstat(name)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("stat %s: %w", name, errors.ErrUnsupported)
	}
	f := &agentv1.VolumeFile{Path: name, Mode: st.Mode, Uid: st.Uid, Gid: st.Gid}
	if r.files = append(r.files, f); len(r.files) > maxFiles {
		return errMany
	}
	var names []string
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		names, err = r.names(name, info)
	case unix.S_IFLNK:
		var to string
		to, err = r.root.Readlink(name)
		f.Data = []byte(to)
	case unix.S_IFREG:
		f.Data, err = r.data(name, info)
	default:
		err = fmt.Errorf("%w: %s is neither a file nor a directory nor a link", errUnsuitable, name)
	}
	if err != nil {
		return err
	}
	if r.left -= int64(len(f.GetData()) + len(name)); r.left < 0 {
		return fmt.Errorf("%w: it has more than %d MiB", errUnsuitable, maxBytes>>20)
	}
	for _, n := range names {
		if err := r.add(path.Join(name, n)); err != nil {
			return err
		}
	}
	return nil
}

// open opens what has been looked at.
func (r *reader) open(name string, info fs.FileInfo) (*os.File, error) {
	f, err := r.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if now, err := f.Stat(); err != nil || !os.SameFile(now, info) {
		_ = f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s was replaced: what it was is gone: %w", name, fs.ErrNotExist))
	}
	return f, nil
}

// data reads a file, or one byte more than may be.
func (r *reader) data(name string, info fs.FileInfo) ([]byte, error) {
	f, err := r.open(name, info)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, r.left+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}

// names lists a directory in order. A huge one is not read to its end.
func (r *reader) names(name string, info fs.FileInfo) ([]string, error) {
	f, err := r.open(name, info)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxFiles)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("list %s: %w", name, err)
	}
	if len(r.files)+len(names) > maxFiles {
		return nil, errMany
	}
	slices.Sort(names)
	return names, nil
}
