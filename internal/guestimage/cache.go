package guestimage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/internal/flock"
	"golang.org/x/sys/unix"
)

// expiry is how long an image stays that is not used: an update of the agent
// or the kernel leaves one behind.
const expiry = 7 * 24 * time.Hour

// tmpPrefix begins the names of what is being written.
const tmpPrefix = ".tmp-"

// cache is the cache directory; its layout is in the package comment.
type cache struct{ dir string }

func (c cache) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// lock makes this the only builder until unlock is called.
func (c cache) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make cache directory: %w", err)
	}
	f, err := flock.Exclusive(ctx, c.path("lock"))
	if err != nil {
		return nil, fmt.Errorf("wait for another builder of the guest image: %w", err)
	}
	return func() { f.Close() }, nil
}

// inputs are all files and directories that an image depends on, by path, and
// their state when they were used; "" means that there was no such file.
type inputs map[string]string

func (in inputs) look(path string) { in[path] = fileState(path) }

// fileState returns a text that changes when the file is written or replaced,
// or the directory's entries are, without reading it.
func fileState(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d %o %d %d.%09d", st.Dev, st.Ino, st.Mode, st.Size, st.Mtim.Sec, st.Mtim.Nsec)
}

// memo is what one configuration led to.
type memo struct {
	Inputs inputs `json:"inputs"`
	Key    string `json:"key"`
}

// recall returns the image of the last build, if all it depends on is as it was.
func (c cache) recall(id string) (Image, bool) {
	var m memo
	if readJSON(c.path("memo", id+".json"), &m) != nil || !validKey(m.Key) {
		return Image{}, false
	}
	for path, state := range m.Inputs {
		if fileState(path) != state {
			return Image{}, false
		}
	}
	img, err := c.image(m.Key)
	if err != nil {
		return Image{}, false
	}
	now := time.Now()
	// The time tells prune that the image is in use. On a read-only cache
	// there is nothing to prune.
	_ = os.Chtimes(c.path("image", m.Key, "image.json"), now, now)
	return img, true
}

// remember notes what a configuration led to.
func (c cache) remember(id string, img Image, seen inputs) error {
	data, err := json.Marshal(memo{Inputs: seen, Key: img.Key})
	if err != nil {
		return fmt.Errorf("encode memo: %w", err)
	}
	if err := c.replace(filepath.Join("memo", id+".json"), data); err != nil {
		return fmt.Errorf("note guest image: %w", err)
	}
	return nil
}

// stored is the content of image.json and kernel.json. The sizes show files
// that a crash of the host has cut.
type stored struct {
	Image     Image  `json:"image"`
	KernelID  string `json:"kernel_id"`
	InitrdLen int64  `json:"initrd_bytes"`
	KernelLen int64  `json:"kernel_bytes"`
}

// image returns a complete image of the cache.
func (c cache) image(key string) (Image, error) {
	var s stored
	if err := readJSON(c.path("image", key, "image.json"), &s); err != nil {
		return Image{}, err
	}
	img := s.Image
	if !validKey(s.KernelID) || img.Key != key {
		return Image{}, fmt.Errorf("image %s: foreign image.json", key)
	}
	img.Initrd = c.path("image", key, "initrd")
	img.Kernel.VMLinux = c.path("kernel", "elf", s.KernelID, "vmlinux")
	for file, size := range map[string]int64{img.Initrd: s.InitrdLen, img.Kernel.VMLinux: s.KernelLen} {
		st, err := os.Stat(file)
		if err != nil {
			return Image{}, fmt.Errorf("image %s: %w", key, err)
		}
		if st.Size() != size {
			return Image{}, fmt.Errorf("image %s: %s has %d bytes instead of %d", key, file, st.Size(), size)
		}
	}
	return img, nil
}

// putImage stores an image whose kernel is stored already.
func (c cache) putImage(img Image, initrd []byte) (Image, error) {
	if old, err := c.image(img.Key); err == nil {
		return old, nil
	}
	st, err := os.Stat(img.Kernel.VMLinux)
	if err != nil {
		return Image{}, fmt.Errorf("store guest image: %w", err)
	}
	s := stored{
		Image:     img,
		KernelID:  filepath.Base(filepath.Dir(img.Kernel.VMLinux)),
		InitrdLen: int64(len(initrd)),
		KernelLen: st.Size(),
	}
	meta, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return Image{}, fmt.Errorf("store guest image: %w", err)
	}
	if err := c.putDir(filepath.Join("image", img.Key), map[string][]byte{"initrd": initrd, "image.json": meta}); err != nil {
		return Image{}, fmt.Errorf("store guest image: %w", err)
	}
	return c.image(img.Key)
}

// kernel returns a stored kernel without its source and modules.
func (c cache) kernel(id string) (Kernel, bool) {
	var s stored
	if readJSON(c.path("kernel", "elf", id, "kernel.json"), &s) != nil {
		return Kernel{}, false
	}
	k := s.Image.Kernel
	k.VMLinux = c.path("kernel", "elf", id, "vmlinux")
	st, err := os.Stat(k.VMLinux)
	return k, err == nil && st.Size() == s.KernelLen
}

// putKernel stores an uncompressed kernel.
func (c cache) putKernel(id string, k Kernel, vmlinux []byte) (Kernel, error) {
	meta, err := json.MarshalIndent(stored{Image: Image{Kernel: k}, KernelLen: int64(len(vmlinux))}, "", "\t")
	if err != nil {
		return Kernel{}, fmt.Errorf("store kernel: %w", err)
	}
	if err := c.putDir(filepath.Join("kernel", "elf", id), map[string][]byte{"vmlinux": vmlinux, "kernel.json": meta}); err != nil {
		return Kernel{}, fmt.Errorf("store kernel: %w", err)
	}
	k.VMLinux = c.path("kernel", "elf", id, "vmlinux")
	return k, nil
}

// images returns the complete images, the newest first.
func (c cache) images() ([]Image, error) {
	entries, err := os.ReadDir(c.path("image"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list guest images: %w", err)
	}
	var list []Image
	for _, e := range entries {
		if img, err := c.image(e.Name()); err == nil {
			list = append(list, img)
		}
	}
	slices.SortFunc(list, func(a, b Image) int { return b.Created.Compare(a.Created) })
	return list, nil
}

// prune removes what has not been used for the given time. The lock is held.
func (c cache) prune(unused time.Duration) error {
	var errs []error
	used := map[string]bool{}
	for _, e := range c.entries("image") {
		var s stored
		file := c.path("image", e, "image.json")
		st, err := os.Stat(file)
		if err == nil && readJSON(file, &s) == nil && time.Since(st.ModTime()) < unused {
			used[s.KernelID] = true
			continue
		}
		errs = append(errs, os.RemoveAll(c.path("image", e)))
	}
	for _, e := range c.entries("kernel", "elf") {
		if !used[e] {
			errs = append(errs, os.RemoveAll(c.path("kernel", "elf", e)))
		}
	}
	for _, e := range c.entries("memo") {
		var m memo
		if readJSON(c.path("memo", e), &m) == nil {
			if _, err := c.image(m.Key); err == nil {
				continue
			}
		}
		errs = append(errs, os.Remove(c.path("memo", e)))
	}
	return errors.Join(errs...)
}

// removeTemporary removes what a crashed builder has left. The lock is held.
func (c cache) removeTemporary() {
	for _, e := range c.entries() {
		if strings.HasPrefix(e, tmpPrefix) {
			os.RemoveAll(c.path(e))
		}
	}
}

// entries returns the names in a directory of the cache, none if it is missing.
func (c cache) entries(elem ...string) []string {
	list, _ := os.ReadDir(c.path(elem...))
	names := make([]string, 0, len(list))
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// putDir makes a directory with the given files. It appears complete, and on
// the disk, or not at all. One that is there already is replaced.
func (c cache) putDir(name string, files map[string][]byte) error {
	tmp, err := os.MkdirTemp(c.dir, tmpPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	for file, data := range files {
		if err := writeFile(filepath.Join(tmp, file), data); err != nil {
			return err
		}
	}
	return c.publish(tmp, name)
}

// publish renames a finished temporary directory to its name in the cache.
func (c cache) publish(tmp, name string) error {
	if err := os.MkdirAll(filepath.Dir(c.path(name)), 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(c.path(name)); err != nil {
		return err
	}
	return os.Rename(tmp, c.path(name))
}

// replace writes a file anew, by rename.
func (c cache) replace(name string, data []byte) error {
	tmp := c.path(tmpPrefix + filepath.Base(name))
	if err := os.MkdirAll(filepath.Dir(c.path(name)), 0o755); err != nil {
		return err
	}
	if err := writeFile(tmp, data); err != nil {
		return err
	}
	return os.Rename(tmp, c.path(name))
}

// writeFile writes a new file and waits until it is on the disk.
func writeFile(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func readJSON(name string, v any) error {
	data, err := os.ReadFile(filepath.Clean(name))
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// validKey reports whether a name read from a file is one that hash made, so
// that it can be part of a path.
func validKey(key string) bool {
	return len(key) == 32 && strings.Trim(key, "0123456789abcdef") == ""
}
