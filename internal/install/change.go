package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// backupSuffix is what the name of the file as it was before ends with.
const backupSuffix = ".before-kata"

// Change is a file as it is and as it is to be.
type Change struct {
	Path string
	// Before and After are its content; nil when it does not exist.
	Before, After []byte

	mode        fs.FileMode
	uid, gid    int // -1 for a file that is new
	criDisabled bool
	// pristine: Before is without our block; begun: there was no file before it.
	pristine, begun bool
}

// observe reads a file that is to be changed; Before is nil when there is none.
func observe(path string) (Change, error) {
	st, err := os.Lstat(path)
	if err == nil && !st.Mode().IsRegular() {
		return Change{}, fmt.Errorf("%s is not a regular file; name the file itself", path)
	}
	ch := Change{Path: path, mode: 0o644, uid: -1, gid: -1}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ch, nil
	case err != nil:
		return Change{}, err
	}
	ch.mode = st.Mode().Perm()
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		ch.uid, ch.gid = int(sys.Uid), int(sys.Gid)
	}
	if ch.Before, err = os.ReadFile(path); err != nil {
		return Change{}, err
	}
	if ch.Before == nil {
		ch.Before = []byte{}
	}
	return ch, nil
}

// Empty tells whether there is nothing to do.
func (c Change) Empty() bool {
	return bytes.Equal(c.Before, c.After) && (c.Before == nil) == (c.After == nil)
}

// Original is the path of a copy of the file as it was before our block came
// into it; empty when there is none.
func (c Change) Original() string {
	saved, err := os.ReadFile(c.backup())
	if err != nil || c.begun || ours(saved) || c.pristine && !bytes.Equal(saved, c.Before) {
		return ""
	}
	return c.backup()
}

func (c Change) backup() string { return c.Path + backupSuffix }

// ours tells whether a text has our block, so that it is no original.
func ours(text []byte) bool { return bytes.Contains(text, []byte(begin)) }

// backUp keeps a copy of the file as it is before our block comes into it, and
// returns the copy there is. What an earlier installation left is replaced; but
// where there is no file any more, it may be the last of it.
func (c Change) backUp() ([]byte, error) {
	saved, err := os.ReadFile(c.backup())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if c.pristine && c.Before != nil && (saved == nil || !bytes.Equal(saved, c.Before)) {
		return c.Before, c.write(c.backup(), c.Before)
	}
	if c.begun && ours(saved) {
		return nil, os.Remove(c.backup())
	}
	return saved, nil
}

// CRIDisabled tells whether the configuration turns the CRI plugin off, so that
// there can be no pods.
func (c Change) CRIDisabled() bool { return c.criDisabled }

// Describe writes which lines come and go.
func (c Change) Describe(w io.Writer) error {
	lines := func(text []byte) [][]byte { return bytes.SplitAfter(text, []byte("\n")) }
	before, after := lines(c.Before), lines(c.After)
	// The change is one block: what is common stands before and after it.
	head := 0
	for head < min(len(before), len(after)) && bytes.Equal(before[head], after[head]) {
		head++
	}
	tail := 0
	for tail < min(len(before), len(after))-head && bytes.Equal(before[len(before)-1-tail], after[len(after)-1-tail]) {
		tail++
	}
	var errs []error
	show := func(sign string, lines [][]byte) {
		for _, l := range lines {
			if len(l) > 0 {
				_, err := fmt.Fprintf(w, "%s %s\n", sign, bytes.TrimSuffix(l, []byte("\n")))
				errs = append(errs, err)
			}
		}
	}
	show("-", before[head:len(before)-tail])
	show("+", after[head:len(after)-tail])
	return errors.Join(errs...)
}

// Apply makes the change. The file is whole at each moment, and a copy of what
// it was before our block came is kept until it is that again.
func (c Change) Apply() error {
	if c.Empty() {
		return nil
	}
	saved, err := c.backUp()
	if err != nil {
		return fmt.Errorf("back up %s: %w", c.Path, err)
	}
	if c.After == nil {
		if err := c.unchanged(); err != nil {
			return err
		}
		return os.Remove(c.Path)
	}
	after := c.After
	// A file that did not end with a line's end does so again.
	restored := saved != nil && bytes.Equal(bytes.TrimSuffix(saved, []byte("\n")), bytes.TrimSuffix(after, []byte("\n")))
	if restored {
		after = saved
	}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o755); err != nil {
		return err
	}
	if err := c.write(c.Path, after); err != nil {
		return err
	}
	if restored {
		return os.Remove(c.backup())
	}
	return nil
}

// unchanged refuses a file that somebody has edited since it was read.
func (c Change) unchanged() error {
	now, err := os.ReadFile(c.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !bytes.Equal(now, c.Before) || (err == nil) != (c.Before != nil) {
		return fmt.Errorf("%s was edited in the meantime and is left as it is; run the command again", c.Path)
	}
	return nil
}

// write replaces the file, or its copy, in one step. Owner and mode stay.
func (c Change) write(path string, text []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(text)
	// The mode comes last: a change of owner takes bits of it away.
	if err = errors.Join(err, f.Chown(c.uid, c.gid), f.Chmod(c.mode), f.Sync(), f.Close(), c.unchanged()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
