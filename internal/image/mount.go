package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
)

// imageFile, in a container's directory, records the image that it uses.
const imageFile = "image.json"

// Mount prepares dir, a container's own directory, and says how to mount the
// image with a layer above it that is the container's to write. Calling it
// again for a stopped container finds what that has written. The directories
// upper and work are made below dir, and image.json, which keeps the layers
// from being removed; removing dir is for the caller.
//
// The options can be longer than the page that mount(2) takes: whoever mounts
// must pass the directories in a shorter way. Colons and backslashes in their
// names are escaped as overlayfs wants it.
func (s *Store) Mount(img Image, dir string) ([]*proxyv1.RootfsMount, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("container directory %q: the path is not absolute", dir)
	}
	var lower []string
	for i, l := range slices.Backward(img.Layers) {
		if _, err := digestHex(l.Key); err != nil {
			return nil, err
		}
		if _, err := os.Stat(s.layerDir(l.Key)); err != nil {
			return nil, fmt.Errorf("layer %d of image %s is gone, pull the image again: %w", i+1, img.Name, err)
		}
		lower = append(lower, s.layerDir(l.Key))
	}
	if len(lower) == 0 { // overlayfs wants one
		empty := filepath.Join(dir, "empty")
		if err := makeDir(empty, 0o755); err != nil {
			return nil, err
		}
		lower = append(lower, empty)
	}
	data, err := json.Marshal(img)
	if err != nil {
		return nil, fmt.Errorf("record image: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, imageFile), data, 0o600); err != nil {
		return nil, fmt.Errorf("record image: %w", err)
	}
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	if err := makeDir(work, 0o700); err != nil {
		return nil, err
	}
	// The root directory of the mount looks like the topmost one.
	if err := makeUpper(upper, lower[0]); err != nil {
		return nil, err
	}
	escape := strings.NewReplacer(`\`, `\\`, ":", `\:`)
	for i := range lower {
		lower[i] = escape.Replace(lower[i])
	}
	return []*proxyv1.RootfsMount{{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + strings.Join(lower, ":"), "upperdir=" + upper, "workdir=" + work,
	}}}, nil
}

// MountedImage returns the image that [Store.Mount] was called with for dir.
func MountedImage(dir string) (Image, error) {
	var img Image
	data, err := os.ReadFile(filepath.Join(dir, imageFile))
	if err != nil {
		return img, fmt.Errorf("image of container: %w", err)
	}
	if err := json.Unmarshal(data, &img); err != nil {
		return img, fmt.Errorf("parse %s: %w", filepath.Join(dir, imageFile), err)
	}
	return img, nil
}

// Tree shows the files of an image without mounting it. dir is that of the
// container given to [Store.Mount], or "" for the image alone.
func (s *Store) Tree(img Image, dir string) Tree {
	var t Tree
	if dir != "" {
		t.Dirs = append(t.Dirs, filepath.Join(dir, "upper"))
	}
	for _, l := range slices.Backward(img.Layers) {
		t.Dirs = append(t.Dirs, s.layerDir(l.Key))
	}
	return t
}

// makeUpper makes the upper directory with the owner and mode of like. One
// that exists is left alone: it belongs to the container.
func makeUpper(upper, like string) error {
	var st unix.Stat_t
	if err := unix.Stat(like, &st); err != nil {
		return fmt.Errorf("stat %s: %w", like, err)
	}
	err := os.Mkdir(upper, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chown(upper, int(st.Uid), int(st.Gid))
	}
	if err == nil {
		err = unix.Chmod(upper, st.Mode&0o7777)
	}
	if err != nil {
		return fmt.Errorf("make upper directory: %w", err)
	}
	return nil
}

func makeDir(dir string, mode os.FileMode) error {
	err := os.Mkdir(dir, mode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chmod(dir, mode)
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	return nil
}
