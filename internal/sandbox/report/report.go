// Package report is what a sandbox tells other programs about itself, in a file
// of its directory (kata ps, kata-runtime list). Its owner writes the file and
// never reads it back. A shim's `delete` leaves copies in bundles.
package report

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

// version is written into every state file; a file with another version
// is refused, never guessed at.
const version = 1

const file = "state.json"

// Status is a container's status, with the names of the OCI runtime spec
// ("State") and "paused".
type Status string

// The statuses of a container.
const (
	Creating Status = "creating"
	Created  Status = "created"
	Running  Status = "running"
	Paused   Status = "paused"
	Stopped  Status = "stopped"
)

// LostCode is the exit code of a process whose sandbox died.
const LostCode = 255

// Exit is how a process ended.
type Exit struct {
	// Code as a shell gives it: the exit status, or 128 + the signal.
	Code uint32    `json:"exit_code"`
	At   time.Time `json:"exited_at"`
	// OOMKilled: the container's memory limit killed a process of it.
	OOMKilled bool `json:"oom_killed,omitempty"`
	// Reason tells why, when the process did not end by itself.
	Reason string `json:"reason,omitempty"`
}

// Sandbox is the state of a sandbox.
type Sandbox struct {
	Version    int         `json:"version"`
	ID         string      `json:"id"`
	OwnerPID   int         `json:"owner_pid"`
	VMMPID     int         `json:"vmm_pid"`
	Accel      string      `json:"accel"`
	Kernel     string      `json:"kernel"`
	Created    time.Time   `json:"created"`
	Containers []Container `json:"containers"`
	// Alive tells whether the owning process still holds the sandbox's lock.
	// It is found out when the state is read, not stored.
	Alive bool `json:"-"`
}

// Container is the part of Sandbox that tells of one container.
type Container struct {
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

// Reserve makes room in a directory for what Leave may write there.
func Reserve(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("make room for the state of a sandbox: %w", err)
	}
	return f.Close()
}

// Leave is Write for a directory of another's, who may be about to remove it: no file
// is made, which could come after all others have gone. The first one to leave
// something is heard. The error wraps fs.ErrNotExist when there is no room reserved.
func Leave(dir string, st Sandbox) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("leave state of sandbox %s: %w", st.ID, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() > 0 {
		return err
	}
	b, err := encode(st)
	if err == nil {
		_, err = f.Write(b)
	}
	if err != nil {
		return fmt.Errorf("leave state of sandbox %s: %w", st.ID, err)
	}
	return nil
}

func encode(st Sandbox) ([]byte, error) {
	st.Version = version
	b, err := json.MarshalIndent(st, "", "\t")
	if err != nil {
		return nil, fmt.Errorf("encode state of sandbox %s: %w", st.ID, err)
	}
	return b, nil
}

// Write replaces the state file of dir in one step, so that a reader sees the
// old or the new state and a crash leaves one of them.
func Write(dir string, st Sandbox) error {
	b, err := encode(st)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, file+".tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write state of sandbox %s: %w", st.ID, err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, file)); err != nil {
		return fmt.Errorf("write state of sandbox %s: %w", st.ID, err)
	}
	return nil
}

// Read reads the state of one sandbox below stateDir. The error is
// fs.ErrNotExist when there is no such sandbox or it has not booted yet.
func Read(stateDir, id string) (Sandbox, error) {
	if id == "." || filepath.Base(id) != id || !filepath.IsLocal(id) {
		return Sandbox{}, fmt.Errorf("read state of sandbox %q: %w", id, fs.ErrInvalid)
	}
	dir := filepath.Join(stateDir, id)
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return Sandbox{}, fmt.Errorf("read state of sandbox %s: %w", id, err)
	}
	var st Sandbox
	if err := json.Unmarshal(b, &st); err != nil {
		return Sandbox{}, fmt.Errorf("read state of sandbox %s: %w", id, err)
	}
	if st.Version != version {
		return Sandbox{}, fmt.Errorf("read state of sandbox %s: it was written by another version of kata (format %d, this one reads %d)", id, st.Version, version)
	}
	st.Alive = locked(filepath.Join(dir, cleanup.LockFile))
	return st, nil
}

// List reads the states of all sandboxes below stateDir, oldest first. A
// sandbox whose state cannot be read is left out and told in the error, which
// comes beside the readable ones.
func List(stateDir string) ([]Sandbox, error) {
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	var (
		states []Sandbox
		errs   []error
	)
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		st, err := Read(stateDir, e.Name())
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
