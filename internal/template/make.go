package template

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/internal/flock"
	"github.com/seed-efd44b36/kata/internal/printable"
	"golang.org/x/sys/unix"
)

// maxFailure is how much of a failure is told.
const maxFailure = 2000

// Make makes a template, unless it is there. boot boots the machine with the file
// as its memory, shared, and saves its state; it returns when the machine has
// ended. One template is made at a time: Make waits for another maker. Failures
// are remembered, see Wanted.
func (s Store) Make(ctx context.Context, info Info, boot func(ctx context.Context, memory, state *os.File) error) error {
	if err := s.make(ctx, info, boot); err != nil {
		if ctx.Err() == nil {
			s.Failed(info.Key, err)
		}
		return fmt.Errorf("make template %s: %w", info.Key, err)
	}
	_ = os.Remove(s.path(info.Key + failedSuffix))
	return nil
}

func (s Store) make(ctx context.Context, info Info, boot func(ctx context.Context, memory, state *os.File) error) (err error) {
	if !validKey(info.Key) {
		return errors.New("not a key")
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	lock, err := flock.Exclusive(ctx, s.path(lockFile))
	if err != nil {
		return fmt.Errorf("wait for the maker of another template: %w", err)
	}
	defer lock.Close()
	if t, err := s.open(info.Key); err == nil {
		return t.Close() // another maker was first
	}
	if err := s.sweep(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.remove(tmpPrefix+info.Key)) }()
	tmp := s.path(tmpPrefix + info.Key)
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return err
	}
	if err := s.fill(ctx, tmp, info, boot); err != nil {
		return err
	}
	if err := s.remove(info.Key); err != nil { // it is not sound
		return err
	}
	if err := os.Rename(tmp, s.path(info.Key)); err != nil {
		return err
	}
	return s.expire(info.Key)
}

// Sweep removes what killed makers have left, and failures that are no reason any
// more not to try again. While a template is made it does nothing.
func (s Store) Sweep() error {
	lock, err := flock.Try(s.path(lockFile))
	if errors.Is(err, flock.ErrHeld) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep templates: %w", err)
	}
	defer lock.Close()
	if err := s.sweep(); err != nil {
		return fmt.Errorf("sweep templates: %w", err)
	}
	return nil
}

// sweep is Sweep for who has the lock.
func (s Store) sweep() error {
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		key, failed := strings.CutSuffix(e.Name(), failedSuffix)
		if strings.HasPrefix(e.Name(), tmpPrefix) || failed && validKey(key) && !s.failedLately(key) {
			errs = append(errs, s.remove(e.Name()))
		}
	}
	return errors.Join(errs...)
}

// fill writes the files of a template and waits until they are on the disk.
func (s Store) fill(ctx context.Context, dir string, info Info, boot func(ctx context.Context, memory, state *os.File) error) error {
	memory, err := create(filepath.Join(dir, memoryFile))
	if err != nil {
		return err
	}
	defer memory.Close()
	state, err := create(filepath.Join(dir, stateFile))
	if err != nil {
		return err
	}
	defer state.Close()
	if err := memory.Truncate(int64(info.MemoryMiB) << 20); err != nil {
		return err
	}
	if err := boot(ctx, memory, state); err != nil {
		return err
	}
	if _, err := state.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if info.StateSum, err = sumOf(state); err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	if info.MemorySum, err = sparseSum(memory); err != nil {
		return fmt.Errorf("read memory: %w", err)
	}
	info.Created = time.Now().UTC()
	text, err := json.MarshalIndent(info, "", "\t")
	if err != nil {
		return err
	}
	about, err := create(filepath.Join(dir, infoFile))
	if err != nil {
		return err
	}
	_, err = about.Write(text)
	return errors.Join(err, about.Sync(), about.Close(), memory.Sync(), state.Sync())
}

// remove removes an entry of the store with all that is in it.
func (s Store) remove(name string) error {
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(name)
}

func create(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// Wanted tells whether it is worth a try to make the template: it is not being made,
// and did not fail a short time ago.
func (s Store) Wanted(key string) bool {
	if s.failedLately(key) {
		return false
	}
	if _, err := os.Stat(s.path(tmpPrefix + key)); err != nil {
		return true
	}
	f, err := flock.Try(s.path(lockFile))
	if err != nil {
		return false
	}
	_ = f.Close()
	return true // its maker was killed
}

func (s Store) failedLately(key string) bool {
	info, err := os.Stat(s.path(key + failedSuffix))
	return err == nil && time.Since(info.ModTime()) < retryAfter
}

// Reject removes a template that is sound and cannot be restored all the same. It is
// not wanted for some time.
func (s Store) Reject(key string, why error) {
	if s.Remove(key) == nil {
		s.Failed(key, why)
	}
}

// Failed notes why a template cannot be made; at worst, it is tried again soon.
func (s Store) Failed(key string, why error) {
	_ = os.WriteFile(s.path(key+failedSuffix), []byte(why.Error()), 0o600)
}

// failure is why the template could not be made.
func (s Store) failure(key string) error {
	text, err := os.ReadFile(s.path(key + failedSuffix))
	if err != nil {
		return err
	}
	return fmt.Errorf("could not be made: %s", printable.Text(string(text), maxFailure))
}

func sumOf(r io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// sumBlock is what sparseSum reads at once, in bytes.
const sumBlock = 64 << 10

// sparseSum is a sum of what there is in a file, and where. Whether zeros are
// stored or a hole makes no difference.
func sparseSum(f *os.File) (string, error) {
	h := sha256.New()
	block := make([]byte, sumBlock)
	for pos := int64(0); ; pos += sumBlock {
		start, err := f.Seek(pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
		pos = max(pos, start&^(sumBlock-1))
		n, err := f.ReadAt(block, pos)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		if bytes.Trim(block[:n], "\x00") != nil {
			_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(pos)))
			_, _ = h.Write(block[:n])
		}
	}
}
