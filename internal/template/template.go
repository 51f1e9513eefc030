// Package template keeps saved machines, from which sandboxes are made: it finds
// one by its key, has one made if there is none, throws out what has not been used
// for long, and tells whether one is whole.
//
//	KEY/memory         the guest's memory, sparse, as long as the machine's is
//	KEY/state          the state of its devices
//	KEY/template.json  what it is; its time tells when it was last used
//	KEY.failed         why it could not be made, for those who ask again soon
//	.lock              held by who makes one
//	.tmp-KEY           what is being made, or was when its maker was killed
//
// A key stands for all that a machine is made of. Templates appear by rename,
// whole, or not at all; all of them can be made again. Who can write into one
// owns every sandbox that is made from it: so nobody but root may, directories
// and files are looked at each time, and a virtual machine gets them open for
// reading only. They hold an idle guest and nothing of any workload.
package template

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNone is that there is no such template.
	ErrNone = errors.New("no such template")
	// ErrUnsound is that there is one which must not be used.
	ErrUnsound = errors.New("template is not sound")
)

const (
	memoryFile, stateFile, infoFile = "memory", "state", "template.json"
	lockFile                        = ".lock"
	tmpPrefix                       = ".tmp-"
	failedSuffix                    = ".failed"
	// retryAfter is how long after a failure nobody need try again.
	retryAfter = 10 * time.Minute
	// maxState bounds a state, in bytes; QEMU's is half a MiB.
	maxState = 16 << 20
	keyLen   = 32
)

// Info is what there is to know of a template.
type Info struct {
	Key string `json:"key"`
	// MemoryMiB and CPUs are the machine's size, NICs its network devices.
	MemoryMiB int `json:"memory_mib"`
	CPUs      int `json:"cpus"`
	NICs      int `json:"nics"`
	// Machine and Kernel tell people what it is.
	Machine string    `json:"machine"`
	Kernel  string    `json:"kernel"`
	Created time.Time `json:"created"`
	// StateSum and MemorySum are SHA-256 sums.
	StateSum  string `json:"state_sha256"`
	MemorySum string `json:"memory_sha256"`

	// Used is when it was last asked for, Bytes what it takes of the disk.
	Used  time.Time `json:"-"`
	Bytes int64     `json:"-"`
}

// Template is an open template. Memory is open for reading only, State is a copy that
// nobody can change; the caller closes it, which a machine that was made from it does not mind.
type Template struct {
	Info
	Memory, State *os.File
}

// Close closes the files.
func (t *Template) Close() error { return errors.Join(t.Memory.Close(), t.State.Close()) }

// Store is a directory of templates. It is safe for concurrent use, also by
// several processes.
type Store struct {
	// Dir is the directory, which is made if need be.
	Dir string
	// MaxBytes is what all templates together may take of the disk before those
	// that were not used for longest are removed.
	MaxBytes int64
}

// Key returns the key of a machine that the given parts describe.
func Key(parts []string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:keyLen]
}

func validKey(key string) bool {
	return len(key) == keyLen && strings.Trim(key, "0123456789abcdef") == ""
}

func (s Store) path(elem ...string) string { return filepath.Join(append([]string{s.Dir}, elem...)...) }

// Find opens the template with the key. The error wraps ErrNone or ErrUnsound.
// Of the memory only size, owner and mode are looked at; Verify reads it.
func (s Store) Find(key string) (*Template, error) {
	t, err := s.open(key)
	if err != nil {
		return nil, fmt.Errorf("template %s: %w", key, err)
	}
	now := time.Now()
	_ = os.Chtimes(s.path(key, infoFile), now, now) // for Expire
	return t, nil
}

// Has tells whether there is a template with the key, sound or not.
func (s Store) Has(key string) bool {
	_, err := os.Stat(s.path(key, infoFile))
	return validKey(key) && err == nil
}

func (s Store) open(key string) (_ *Template, err error) {
	if !validKey(key) {
		return nil, ErrNone
	}
	dir, err := os.OpenRoot(s.path(key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	for name, look := range map[string]func() (fs.FileInfo, error){
		s.Dir:       func() (fs.FileInfo, error) { return os.Lstat(s.Dir) },
		s.path(key): func() (fs.FileInfo, error) { return dir.Stat(".") },
	} {
		info, err := look()
		if err == nil {
			err = onlyRoot(info, fs.ModeDir)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrUnsound, name, err)
		}
	}
	t := &Template{}
	defer func() {
		if err != nil && t.Memory != nil {
			_ = t.Memory.Close()
		}
		if err != nil && t.State != nil {
			_ = t.State.Close()
		}
	}()
	about, info, err := openFile(dir, infoFile)
	if err != nil {
		return nil, err
	}
	defer about.Close()
	if err := json.NewDecoder(io.LimitReader(about, 1<<16)).Decode(&t.Info); err != nil || t.Key != key {
		return nil, fmt.Errorf("%w: %s is not its own", ErrUnsound, infoFile)
	}
	t.Used = info.ModTime()
	if t.Memory, info, err = openFile(dir, memoryFile); err != nil {
		return nil, err
	}
	if want := int64(t.MemoryMiB) << 20; info.Size() != want {
		return nil, fmt.Errorf("%w: memory has %d bytes instead of %d", ErrUnsound, info.Size(), want)
	}
	t.Bytes = allocated(info)
	state, info, err := openFile(dir, stateFile)
	if err != nil {
		return nil, err
	}
	defer state.Close()
	t.Bytes += allocated(info)
	// QEMU gets a copy that nobody can change any more, itself included.
	text, err := io.ReadAll(io.LimitReader(state, maxState))
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != t.StateSum {
		return nil, fmt.Errorf("%w: its state has changed", ErrUnsound)
	}
	if t.State, err = sealed(text); err != nil {
		return nil, fmt.Errorf("copy state: %w", err)
	}
	return t, nil
}

// sealed returns a file in memory that can only be read.
func sealed(text []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(stateFile, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), stateFile)
	_, err = f.Write(text)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// openFile opens a file that only root may write.
func openFile(dir *os.Root, name string) (*os.File, fs.FileInfo, error) {
	f, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w: %w", ErrUnsound, err)
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = onlyRoot(info, 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, fmt.Errorf("%w: %s: %w", ErrUnsound, name, err)
	}
	return f, info, nil
}

// onlyRoot makes sure that a file is of the type and nobody but root can change it.
func onlyRoot(info fs.FileInfo, want fs.FileMode) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || info.Mode().Type() != want:
		return errors.New("wrong type of file")
	case st.Uid != 0:
		return fmt.Errorf("belongs to user %d instead of root", st.Uid)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("others than root may write it (mode %v)", info.Mode().Perm())
	}
	return nil
}

// allocated is what a file takes of the disk, in bytes.
func allocated(info fs.FileInfo) int64 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return info.Size()
	}
	return st.Blocks * 512
}

// Verify reads all of a template. The error wraps ErrNone or ErrUnsound.
func (s Store) Verify(key string) error {
	t, err := s.open(key)
	if err != nil {
		return fmt.Errorf("template %s: %w", key, err)
	}
	defer t.Close()
	sum, err := sparseSum(t.Memory)
	if err == nil && sum != t.MemorySum {
		err = fmt.Errorf("%w: its memory has changed", ErrUnsound)
	}
	if err != nil {
		return fmt.Errorf("template %s: %w", key, err)
	}
	return nil
}

// Problem is a template that cannot be used, or be made, and why.
type Problem struct {
	Key string
	Err error
}

// List returns the templates, the last used first, and what is wrong with others.
func (s Store) List() ([]Info, []Problem, error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list templates: %w", err)
	}
	var list []Info
	var problems []Problem
	for _, e := range entries {
		if key, failed := strings.CutSuffix(e.Name(), failedSuffix); failed && validKey(key) {
			problems = append(problems, Problem{Key: key, Err: s.failure(key)})
		}
		if !validKey(e.Name()) {
			continue
		}
		t, err := s.open(e.Name())
		if err != nil {
			problems = append(problems, Problem{Key: e.Name(), Err: err})
			continue
		}
		_ = t.Close()
		list = append(list, t.Info)
	}
	slices.SortFunc(list, func(a, b Info) int { return b.Used.Compare(a.Used) })
	return list, problems, nil
}

// Remove removes a template, sound or not. Machines that were made from it go on.
func (s Store) Remove(key string) error {
	if !validKey(key) {
		return fmt.Errorf("template %q: %w", key, ErrNone)
	}
	_, err := os.Lstat(s.path(key))
	failed := os.Remove(s.path(key + failedSuffix))
	if errors.Is(err, fs.ErrNotExist) && failed != nil {
		return fmt.Errorf("template %s: %w", key, ErrNone)
	}
	if err := s.remove(key); err != nil {
		return fmt.Errorf("remove template %s: %w", key, err)
	}
	return nil
}

// expire makes room: what was not used for longest goes, but not keep.
func (s Store) expire(keep string) error {
	list, problems, err := s.List()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range problems {
		if errors.Is(p.Err, ErrUnsound) {
			errs = append(errs, s.Remove(p.Key))
		}
	}
	var sum int64
	for _, t := range list {
		if sum += t.Bytes; sum > s.MaxBytes && t.Key != keep {
			errs = append(errs, s.Remove(t.Key))
		}
	}
	return errors.Join(errs...)
}
