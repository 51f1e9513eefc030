package runflags

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Copier copies directories of a root file system. image.Tree does it.
type Copier interface {
	// CopyDir copies a directory with all that is in it onto dst, a
	// directory on the host. fs.ErrNotExist: the file system has none.
	CopyDir(name, dst string) error
}

// Make makes the volume when it is not there yet. A named or anonymous one that
// is empty gets what the image has in its place, as Docker does it.
func (v Volume) Make(from Copier) error {
	what := v.Name
	if what == "" {
		what = v.Path
	}
	if v.Name == "" && !v.Anonymous {
		if err := os.MkdirAll(v.Path, 0o755); err != nil {
			return fmt.Errorf("volume %s: %w", what, err)
		}
		return nil
	}
	entries, err := os.ReadDir(v.Path)
	if err == nil && len(entries) > 0 {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("volume %s: %w", what, err)
	}
	parent := filepath.Dir(v.Path)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return fmt.Errorf("volume %s: %w", what, err)
	}
	// Filled under another name, so that no half volume is ever found.
	tmp, err := os.MkdirTemp(parent, ".new-")
	if err != nil {
		return fmt.Errorf("volume %s: %w", what, err)
	}
	root, err := os.OpenRoot(parent)
	if err != nil {
		return fmt.Errorf("volume %s: %w", what, err)
	}
	defer func() {
		_ = root.RemoveAll(filepath.Base(tmp)) // nothing is left of it after success
		_ = root.Close()
	}()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("volume %s: %w", what, err)
	}
	if from != nil {
		if err := from.CopyDir(v.Target, tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("volume %s: copy %s of the image: %w", what, v.Target, err)
		}
	}
	err = os.Rename(tmp, v.Path)
	if errors.Is(err, fs.ErrExist) {
		return nil // somebody else has filled it meanwhile
	}
	if err != nil {
		return fmt.Errorf("volume %s: %w", what, err)
	}
	return nil
}
