// Package mirror writes the volumes that the host copies into the guest's memory.
// It changes what has changed only, and in the order in which the kubelet does, so
// that programs that watch a volume see the same as on the host.
//
// What is to be written comes from the host. What is there may have been changed
// by a container that may mount: no path leads out of the volume.
package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"golang.org/x/sys/unix"
)

// Dir is where the copies are, each in CONTAINER/NUMBER.
const Dir = "/run/kata/volumes"

// ErrInvalid is wrapped by errors about a description that makes no sense.
var ErrInvalid = errors.New("invalid description of a volume")

const (
	// current is the link that the kubelet replaces to change all files at once,
	// fresh its name before that, and that of any other file that replaces one.
	current = "..data"
	fresh   = "..data_tmp"
)

// Write makes a volume what the files say. Without any it is removed.
func Write(dir, container string, number uint32, files []*agentv1.VolumeFile) error {
	var err error
	name := filepath.Join(container, strconv.FormatUint(uint64(number), 10))
	if len(files) > 0 {
		err = write(filepath.Join(dir, name), files)
	} else {
		err = Remove(dir, name)
	}
	if err != nil {
		return fmt.Errorf("write volume %d of container %q: %w", number, container, err)
	}
	return nil
}

// Remove removes the volumes of a container, or CONTAINER/NUMBER only.
func Remove(dir, name string) error {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // there has been none
	}
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(name)
}

func write(at string, files []*agentv1.VolumeFile) error {
	if files[0].GetPath() != "." || files[0].GetMode()&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("the volume itself is not described: %w", ErrInvalid)
	}
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(at)
	if err != nil {
		return err
	}
	defer root.Close()
	wanted := make(map[string]bool, len(files))
	var links []*agentv1.VolumeFile
	for _, f := range files {
		if !fs.ValidPath(f.GetPath()) {
			return fmt.Errorf("path %q: %w", f.GetPath(), ErrInvalid)
		}
		wanted[f.GetPath()] = true
		switch f.GetMode() & unix.S_IFMT {
		case unix.S_IFDIR:
			err = directory(root, f)
		case unix.S_IFREG:
			err = regular(root, f)
		case unix.S_IFLNK:
			links = append(links, f)
		default:
			err = fmt.Errorf("%s has mode %o: %w", f.GetPath(), f.GetMode(), ErrInvalid)
		}
		if err != nil {
			return err
		}
	}
	// First the one that others lead through.
	slices.SortStableFunc(links, func(a, b *agentv1.VolumeFile) int {
		return order(a) - order(b)
	})
	for _, f := range links {
		if err := link(root, f); err != nil {
			return err
		}
	}
	return sweep(root, wanted)
}

func order(f *agentv1.VolumeFile) int {
	if f.GetPath() == current {
		return 0
	}
	return 1
}

func directory(root *os.Root, f *agentv1.VolumeFile) error {
	info, err := root.Lstat(f.GetPath())
	if err == nil && !info.IsDir() {
		err = errors.Join(root.Remove(f.GetPath()), fs.ErrNotExist)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = root.Mkdir(f.GetPath(), 0o700)
	}
	if err != nil {
		return err
	}
	return attributes(root, f.GetPath(), f)
}

func regular(root *os.Root, f *agentv1.VolumeFile) error {
	info, err := root.Lstat(f.GetPath())
	if err == nil && info.Mode().IsRegular() && info.Size() == int64(len(f.GetData())) {
		if have, err := root.ReadFile(f.GetPath()); err == nil && bytes.Equal(have, f.GetData()) {
			return attributes(root, f.GetPath(), f)
		}
	}
	name := f.GetPath()
	if err == nil {
		if name, err = beside(root, f.GetPath()); err != nil {
			return err
		}
	}
	w, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = w.Write(f.GetData())
	if err := errors.Join(err, w.Close(), attributes(root, name, f)); err != nil {
		return err
	}
	return rename(root, name, f.GetPath())
}

func link(root *os.Root, f *agentv1.VolumeFile) error {
	to := string(f.GetData())
	have, err := root.Readlink(f.GetPath())
	if err == nil && have == to {
		return nil
	}
	name := f.GetPath()
	if _, err := root.Lstat(name); err == nil || name == current {
		if name, err = beside(root, name); err != nil {
			return err
		}
	}
	if err := root.Symlink(to, name); err != nil {
		return err
	}
	if err := root.Lchown(name, int(f.GetUid()), int(f.GetGid())); err != nil {
		return err
	}
	return rename(root, name, f.GetPath())
}

// beside returns the name beside a file under which what replaces it is made, where
// nothing is.
func beside(root *os.Root, name string) (string, error) {
	other := path.Join(path.Dir(name), fresh)
	return other, root.RemoveAll(other)
}

func rename(root *os.Root, from, to string) error {
	if from == to {
		return nil
	}
	if info, err := root.Lstat(to); err == nil && info.IsDir() {
		if err := root.RemoveAll(to); err != nil {
			return err
		}
	}
	return root.Rename(from, to)
}

// attributes sets owner and permissions, where they differ.
func attributes(root *os.Root, name string, f *agentv1.VolumeFile) error {
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("stat %s: %w", name, errors.ErrUnsupported)
	}
	if st.Uid != f.GetUid() || st.Gid != f.GetGid() {
		if err := root.Lchown(name, int(f.GetUid()), int(f.GetGid())); err != nil {
			return err
		}
		st.Mode = 0 // the change of owner may have taken bits away
	}
	if st.Mode&0o7777 == f.GetMode()&0o7777 {
		return nil
	}
	return root.Chmod(name, permissions(f.GetMode()))
}

// permissions are those of st_mode in Go's form.
func permissions(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for bit, to := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= to
		}
	}
	return m
}

// sweep removes what is not wanted: links first, then what they led to.
func sweep(root *os.Root, wanted map[string]bool) error {
	var links, others []string
	err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case wanted[name]:
			return nil
		case d.Type()&fs.ModeSymlink != 0:
			links = append(links, name)
		default:
			others = append(others, name)
			if d.IsDir() {
				return fs.SkipDir
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range append(links, others...) {
		if err := root.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}
