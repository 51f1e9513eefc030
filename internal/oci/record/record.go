// Package record keeps what kata-runtime has to know of a container from one verb
// to the next: a small file in a directory of the container's own below the root
// that the engine names. What changes while a container runs is not in it; that is
// the sandbox's to tell.
//
// Verbs that change a container hold its lock. A crash leaves the directory, with
// or without a file, until the container is deleted.
package record

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/flock"
)

// The errors that engines know, with runc's texts.
var (
	ErrNotFound  = errors.New("container does not exist")
	ErrExists    = errors.New("container with given ID already exists")
	ErrInvalidID = errors.New("invalid container ID format")
)

// version is written into every file; a file with another one is refused.
const version = 1

const (
	stateFile = "state.json"
	lockFile  = "lock"
)

// maxID is how long an id may be, in bytes: the sandbox's own limit.
const maxID = 128

// Record is what is kept of a container.
type Record struct {
	Version     int               `json:"version"`
	ID          string            `json:"id"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	UID         uint32            `json:"uid"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Sandbox is the name of the container's sandbox.
	Sandbox string `json:"sandbox"`
	// Shim is the kata-shim, whose pid is the container's.
	Shim Process `json:"shim"`
	// Ready: it has been created in full.
	Ready bool `json:"ready"`
	// Poststart and Poststop are hooks that are still to be run.
	Poststart []specs.Hook `json:"poststart,omitempty"`
	Poststop  []specs.Hook `json:"poststop,omitempty"`
}

// Root is a directory of containers.
type Root string

// Entry is the place of one container, locked.
type Entry struct {
	root Root
	id   string
	lock *os.File
}

// CheckID tells whether id can be that of a container.
func CheckID(id string) error {
	if len(id) > maxID || !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`).MatchString(id) {
		return ErrInvalidID
	}
	return nil
}

func (r Root) dir(id string) string { return filepath.Join(string(r), id) }

// Create makes the place of a new container.
func (r Root) Create(id string) (*Entry, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(string(r), 0o700); err != nil {
		return nil, fmt.Errorf("directory of containers: %w", err)
	}
	err := os.Mkdir(r.dir(id), 0o711)
	if errors.Is(err, fs.ErrExist) {
		return nil, ErrExists
	}
	if err != nil {
		return nil, fmt.Errorf("directory of the container: %w", err)
	}
	// It is new: whoever has found it by now does not hold it for long.
	return r.Lock(context.Background(), id)
}

// Lock waits until no other verb changes the container, or ctx is done.
func (r Root) Lock(ctx context.Context, id string) (*Entry, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	path := filepath.Join(r.dir(id), lockFile)
	for {
		f, err := flock.Exclusive(ctx, path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, ErrNotFound
		}
		if err != nil {
			return nil, fmt.Errorf("wait for another verb to be done with container %s: %w", id, err)
		}
		// While we waited it may have been deleted, and made again.
		if same(f, path) {
			return &Entry{root: r, id: id, lock: f}, nil
		}
		_ = f.Close()
	}
}

func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// Unlock lets others change the container.
func (e *Entry) Unlock() { _ = e.lock.Close() }

// Write replaces the record in one step.
func (e *Entry) Write(rec Record) error {
	rec.Version, rec.ID = version, e.id
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode state of container %s: %w", e.id, err)
	}
	path := filepath.Join(e.root.dir(e.id), stateFile)
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return fmt.Errorf("write state of container %s: %w", e.id, err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("write state of container %s: %w", e.id, err)
	}
	return nil
}

// Remove removes the place of the container.
func (e *Entry) Remove() error {
	root, err := os.OpenRoot(string(e.root))
	if err != nil {
		return fmt.Errorf("remove container %s: %w", e.id, err)
	}
	defer root.Close()
	// In one step, so that who waits for the lock never sees half of it. What a
	// crash leaves of the second is no container, and goes with the next.
	gone := "." + e.id
	if err := errors.Join(root.RemoveAll(gone), root.Rename(e.id, gone), root.RemoveAll(gone)); err != nil {
		return fmt.Errorf("remove container %s: %w", e.id, err)
	}
	return nil
}

// Read reads the record of a container. The error wraps ErrNotFound when there is
// none, or none yet.
func (r Root) Read(id string) (Record, error) {
	if err := CheckID(id); err != nil {
		return Record{}, err
	}
	b, err := os.ReadFile(filepath.Join(r.dir(id), stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, ErrNotFound
	}
	if err != nil {
		return Record{}, fmt.Errorf("read state of container %s: %w", id, err)
	}
	var rec Record
	if err := json.Unmarshal(b, &rec); err != nil {
		return Record{}, fmt.Errorf("read state of container %s: %w", id, err)
	}
	if rec.Version != version || rec.ID != id {
		return Record{}, fmt.Errorf("read state of container %s: it was written by another version of kata-runtime (format %d, this one reads %d)", id, rec.Version, version)
	}
	return rec, nil
}

// List reads all records, the oldest first. What cannot be read is told in the
// error, beside the rest.
func (r Root) List() ([]Record, error) {
	entries, err := os.ReadDir(string(r))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var list []Record
	var errs []error
	for _, e := range entries {
		rec, err := r.Read(e.Name())
		switch {
		case errors.Is(err, ErrNotFound), errors.Is(err, ErrInvalidID):
		case err != nil:
			errs = append(errs, err)
		default:
			list = append(list, rec)
		}
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].Created.Before(list[j].Created) })
	return list, errors.Join(errs...)
}
