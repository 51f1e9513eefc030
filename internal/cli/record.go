package cli

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"golang.org/x/sys/unix"
)

// Files in a container's directory below DATA_DIR/containers. The directory is
// the container's OCI bundle as well.
const (
	recordFile = "container.json"
	exitFile   = "exit.json"
	logFile    = "log.json"
)

// record is what `kata` knows about a container that it made.
type record struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Image   string    `json:"image"`
	Command []string  `json:"command"`
	Created time.Time `json:"created"`
	Ports   []string  `json:"ports,omitempty"`
	// Detached containers have a log; Remove tells that --rm was given.
	Detached bool `json:"detached"`
	Remove   bool `json:"remove"`
	TTY      bool `json:"tty"`
	// StopSignal is what `kata stop` sends first.
	StopSignal int `json:"stop_signal"`
}

// store is the directory of all containers of `kata`.
type store struct {
	dir      string // DATA_DIR/containers
	stateDir string
}

func newStore(c config.Config) store {
	return store{dir: filepath.Join(c.Runtime.DataDir, "containers"), stateDir: c.Runtime.StateDir}
}

func (s store) path(id string) string { return filepath.Join(s.dir, id) }

// newID makes a random id as Docker's: 64 hexadecimal digits of which the
// first 12 are shown. Socket paths are the reason for our 32.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// create reserves the record's name and makes its directory, which the caller
// holds until it calls letGo or ends: others see that the container is being
// made, or run in the foreground.
func (s store) create(r record) (letGo func(), err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	unlock, err := s.lock(r.Name != "")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.isFree(r.Name); err != nil {
		return nil, err
	}
	if err := os.Mkdir(s.path(r.ID), 0o700); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	if letGo, err = s.write(r); err != nil {
		return nil, errors.Join(fmt.Errorf("create container: %w", err), s.remove(r.ID))
	}
	return letGo, nil
}

// isFree fails if a container has the name. Without one there is nothing to look
// for, in what may be hundreds of records.
func (s store) isFree(name string) error {
	if name == "" {
		return nil
	}
	all, err := s.list()
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.Name == name || o.ID == name {
			return fmt.Errorf("the name %q is in use by container %s; remove it with `kata rm %s` or choose another", name, short(o.ID), name)
		}
	}
	return nil
}

// write takes hold of the container's directory and writes its record.
func (s store) write(r record) (letGo func(), err error) {
	dir, err := os.Open(s.path(r.ID))
	if err != nil {
		return nil, err
	}
	if err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		err = fmt.Errorf("lock: %w", err)
	}
	b, merr := json.MarshalIndent(r, "", "\t")
	if err = errors.Join(err, merr); err == nil {
		err = os.WriteFile(filepath.Join(s.path(r.ID), recordFile), b, 0o600)
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return func() { _ = dir.Close() }, nil
}

// held tells whether the `kata run` that made the container still has hold of it.
func (s store) held(id string) bool {
	dir, err := os.Open(s.path(id))
	if err != nil {
		return false
	}
	defer dir.Close()
	return errors.Is(unix.Flock(int(dir.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// sweep removes the directories of containers that nobody can want: those of
// interrupted `kata run --rm`, and those that have no record, of interrupted
// creations and removals.
func (s store) sweep() error {
	unlock, err := s.lock(true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("sweep containers: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || s.held(e.Name()) {
			continue
		}
		// A sandbox removes what is its own.
		if _, err := os.Lstat(filepath.Join(s.stateDir, e.Name())); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		r, err := s.read(e.Name())
		if err == nil && r.Remove || errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, s.remove(e.Name()))
		}
	}
	return errors.Join(errs...)
}

// dirs are the directories of all containers.
func (s store) dirs() ([]string, error) {
	rs, err := s.list()
	dirs := make([]string, 0, len(rs))
	for _, r := range rs {
		dirs = append(dirs, s.path(r.ID))
	}
	return dirs, err
}

// lock keeps those apart who add containers with names, who remove what nobody
// wants, and, shared, those who add containers without a name.
func (s store) lock(alone bool) (unlock func(), err error) {
	how := unix.LOCK_SH
	if alone {
		how = unix.LOCK_EX
	}
	f, err := os.OpenFile(filepath.Join(s.dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock containers: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		return nil, errors.Join(fmt.Errorf("lock containers: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// list reads all records, newest first.
func (s store) list() ([]record, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var rs []record
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		r, err := s.read(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // being made or being removed
		}
		if err != nil {
			return nil, fmt.Errorf("list containers: %w", err)
		}
		rs = append(rs, r)
	}
	slices.SortFunc(rs, func(a, b record) int { return b.Created.Compare(a.Created) })
	return rs, nil
}

func (s store) read(id string) (record, error) {
	var r record
	b, err := os.ReadFile(filepath.Join(s.path(id), recordFile))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return record{}, fmt.Errorf("container %s: %w", short(id), err)
	}
	return r, nil
}

// errNoContainer: there is no container of that name.
var errNoContainer = errors.New("no such container")

// find finds a container by name, id, or the beginning of an id.
func (s store) find(ref string) (record, error) {
	all, err := s.list()
	if err != nil {
		return record{}, err
	}
	var hits []record
	for _, r := range all {
		if r.Name == ref || r.ID == ref {
			return r, nil
		}
		if ref != "" && strings.HasPrefix(r.ID, ref) {
			hits = append(hits, r)
		}
	}
	switch len(hits) {
	case 0:
		return record{}, fmt.Errorf("%w: %q (`kata ps -a` lists all)", errNoContainer, ref)
	case 1:
		return hits[0], nil
	}
	return record{}, fmt.Errorf("container %q: %d ids begin so; give more of it", ref, len(hits))
}

// remove removes a container's directory, in which its files may be.
func (s store) remove(id string) error {
	if err := cleanup.RemoveTree(s.path(id)); err != nil {
		return fmt.Errorf("remove container %s: %w", short(id), err)
	}
	return nil
}

// condition is what a container is doing now.
type condition struct {
	status report.Status
	exit   *report.Exit // of a stopped one, nil when nobody knows
}

func (s store) condition(r record) condition {
	st, err := report.Read(s.stateDir, r.ID)
	if err == nil && st.Alive {
		for _, c := range st.Containers {
			if c.ID == r.ID && c.Exit == nil {
				return condition{status: c.Status}
			}
		}
	}
	b, err := os.ReadFile(filepath.Join(s.path(r.ID), exitFile))
	if err == nil {
		var e report.Exit
		if json.Unmarshal(b, &e) == nil {
			return condition{status: report.Stopped, exit: &e}
		}
	}
	if st.Alive || s.held(r.ID) {
		return condition{status: report.Creating}
	}
	return condition{status: report.Stopped}
}

func (c condition) running() bool {
	return c.status == report.Running || c.status == report.Paused || c.status == report.Created
}

// String is the STATUS column of `kata ps`.
func (c condition) String() string {
	switch {
	case c.status != report.Stopped:
		return string(c.status)
	case c.exit == nil:
		return "dead (its kata-proxy was killed)"
	case c.exit.Reason != "":
		return fmt.Sprintf("exited (%d): %s", c.exit.Code, printable.Text(c.exit.Reason, 200))
	default:
		return fmt.Sprintf("exited (%d) %s ago", c.exit.Code, age(c.exit.At))
	}
}

func short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// age is the time since t in one unit.
func age(t time.Time) string {
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}
