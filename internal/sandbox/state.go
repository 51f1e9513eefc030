package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"time"

	"github.com/seed-efd44b36/kata/internal/cleanup"
	"golang.org/x/sys/unix"
)

// stateVersion is written into every state file; a file with another version
// is refused, never guessed at.
const stateVersion = 1

const stateFile = "state.json"

// Status is a container's status, with the names of the OCI runtime spec
// ("State") and "paused".
type Status string

// The statuses of a container.
const (
	StatusCreating Status = "creating"
	StatusCreated  Status = "created"
	StatusRunning  Status = "running"
	StatusPaused   Status = "paused"
	StatusStopped  Status = "stopped"
)

// State is what a sandbox writes about itself for other programs (kata ps,
// kata-runtime list). It is a report: the owner never reads it back.
type State struct {
	Version    int              `json:"version"`
	ID         string           `json:"id"`
	OwnerPID   int              `json:"owner_pid"`
	VMMPID     int              `json:"vmm_pid"`
	Accel      string           `json:"accel"`
	Kernel     string           `json:"kernel"`
	Created    time.Time        `json:"created"`
	Containers []ContainerState `json:"containers"`
	// Alive tells whether the owning process still holds the sandbox's lock.
	// It is found out when the state is read, not stored.
	Alive bool `json:"-"`
}

// ContainerState is the part of State that tells of one container.
type ContainerState struct {
	ID     string `json:"id"`
	Bundle string `json:"bundle"`
	Status Status `json:"status"`
	// GuestPID is the init process's pid inside the guest; it means nothing
	// on the host.
	GuestPID    int               `json:"guest_pid"`
	Created     time.Time         `json:"created"`
	UID         uint32            `json:"uid"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Exit        *Exit             `json:"exit,omitempty"`
}

// writeState replaces the state file in one step, so that a reader sees the
// old or the new state and a crash leaves one of them.
func writeState(dir string, st State) error {
	b, err := json.MarshalIndent(st, "", "\t")
	if err != nil {
		return fmt.Errorf("encode state of sandbox %s: %w", st.ID, err)
	}
	tmp := filepath.Join(dir, stateFile+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write state of sandbox %s: %w", st.ID, err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, stateFile)); err != nil {
		return fmt.Errorf("write state of sandbox %s: %w", st.ID, err)
	}
	return nil
}

// ReadState reads the state of one sandbox below stateDir. The error is
// fs.ErrNotExist when there is no such sandbox or it has not booted yet.
func ReadState(stateDir, id string) (State, error) {
	if err := CheckID(id); err != nil {
		return State{}, err
	}
	dir := filepath.Join(stateDir, id)
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return State{}, fmt.Errorf("read state of sandbox %s: %w", id, err)
	}
	var st State
	if err := json.Unmarshal(b, &st); err != nil {
		return State{}, fmt.Errorf("read state of sandbox %s: %w", id, err)
	}
	if st.Version != stateVersion {
		return State{}, fmt.Errorf("read state of sandbox %s: it was written by another version of kata (format %d, this one reads %d)", id, st.Version, stateVersion)
	}
	st.Alive = locked(filepath.Join(dir, cleanup.LockFile))
	return st, nil
}

// List reads the states of all sandboxes below stateDir, oldest first. A
// sandbox whose state cannot be read is left out and told in the error, which
// comes beside the readable ones.
func List(stateDir string) ([]State, error) {
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	var (
		states []State
		errs   []error
	)
	for _, e := range entries {
		if !e.IsDir() || CheckID(e.Name()) != nil {
			continue
		}
		st, err := ReadState(stateDir, e.Name())
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			errs = append(errs, err)
		default:
			states = append(states, st)
		}
	}
	sort.Slice(states, func(i, j int) bool { return states[i].Created.Before(states[j].Created) })
	return states, errors.Join(errs...)
}

// locked tells whether some process holds the lock file.
func locked(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// maxID bounds ids so that every socket path below the default state
// directory fits into a sockaddr_un.
const maxID = 76

// CheckID tells whether s can be the id of a sandbox, container or exec:
// letters, digits, '_', '.', '-' (and not first a '.' or '-'), as containerd
// and Docker have them. Ids become file names on the host and in the guest.
func CheckID(s string) error {
	if s == "" || len(s) > maxID {
		return fmt.Errorf("id %q: must have 1 to %d characters: %w", s, maxID, ErrInvalid)
	}
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return fmt.Errorf("id %q: only letters, digits, '_', '.' and '-' are allowed, and a letter or digit first: %w", s, ErrInvalid)
		}
	}
	return nil
}
