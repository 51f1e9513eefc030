package cgroup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// errRemoved says that a group is gone.
var errRemoved = errors.New("cgroup was removed")

// watch calls check at once and each time when the kernel reports a change of the
// file, until check says that it is done or fails. The error is errRemoved if the
// group is gone by then, that of ctx if it ends.
func (g *Group) watch(ctx context.Context, file string, check func() (done bool, err error)) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer func() { _ = events.Close() }()
	_, err = unix.InotifyAddWatch(fd, filepath.Join(g.dir, file), unix.IN_MODIFY|unix.IN_DELETE_SELF)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(g.dir); err == nil {
			return fmt.Errorf("watch %s: %w", file, fs.ErrNotExist)
		}
		return errRemoved
	}
	if err != nil {
		return fmt.Errorf("watch %s: %w", file, err)
	}
	wake := func() { _ = events.SetReadDeadline(time.Unix(1, 0)) }
	defer context.AfterFunc(ctx, wake)()
	defer context.AfterFunc(g.life, wake)()
	buf := make([]byte, 16*unix.SizeofInotifyEvent)
	for {
		done, err := check()
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return errRemoved
		}
		if done || err != nil {
			return err
		}
		n, err := events.Read(buf)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if g.life.Err() != nil {
			return errRemoved
		}
		if err != nil {
			return fmt.Errorf("watch %s: %w", file, err)
		}
		if removed(buf[:n]) {
			return errRemoved
		}
	}
}

// removed looks for the end of the watch among events. A watched file has no name,
// so that all of them are of the same size.
func removed(buf []byte) bool {
	for len(buf) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(buf[4:])
		if mask&(unix.IN_IGNORED|unix.IN_DELETE_SELF) != 0 {
			return true
		}
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[12:]))
		buf = buf[min(size, len(buf)):]
	}
	return false
}

// Freeze stops every process of the group and waits until they stand still.
func (g *Group) Freeze(ctx context.Context) error { return g.freeze(ctx, 1) }

// Thaw undoes Freeze.
func (g *Group) Thaw(ctx context.Context) error { return g.freeze(ctx, 0) }

func (g *Group) freeze(ctx context.Context, state uint64) error {
	if err := write(g.dir, "cgroup.freeze", fmt.Sprint(state)); err != nil {
		return fmt.Errorf("freeze cgroup %q: %w", g.dir, err)
	}
	err := g.watch(ctx, "cgroup.events", func() (bool, error) {
		events, err := readKeyed(g.dir, "cgroup.events")
		return events["frozen"] == state, err
	})
	if err != nil {
		if state == 1 {
			_ = write(g.dir, "cgroup.freeze", "0")
		}
		return fmt.Errorf("freeze cgroup %q: %w", g.dir, err)
	}
	return nil
}

// OOMKills is how many processes of the group were killed for want of memory.
func (g *Group) OOMKills() (uint64, error) {
	events, err := readKeyed(g.dir, "memory.events")
	if err != nil {
		return 0, fmt.Errorf("read the memory events of cgroup %q: %w", g.dir, err)
	}
	return events["oom_kill"], nil
}

// WatchOOM calls notify after every kill for want of memory until ctx ends (its
// error is returned) or the group is deleted (nil is). Kills that follow closely
// may be told as one.
func (g *Group) WatchOOM(ctx context.Context, notify func()) error {
	seen := uint64(0)
	err := g.watch(ctx, "memory.events", func() (bool, error) {
		events, err := readKeyed(g.dir, "memory.events")
		if err == nil && events["oom_kill"] > seen {
			seen = events["oom_kill"]
			notify()
		}
		return false, err
	})
	if errors.Is(err, errRemoved) {
		return nil
	}
	return err
}

// Delete removes the group and all groups below it. It waits, no longer than ctx
// allows, until their processes, which Kill was called for, have ended. A group
// that is gone is no error.
func (g *Group) Delete(ctx context.Context) error {
	err := g.watch(ctx, "cgroup.events", func() (bool, error) {
		events, err := readKeyed(g.dir, "cgroup.events")
		return events["populated"] == 0, err
	})
	if err == nil {
		err = g.remove()
	}
	if errors.Is(err, errRemoved) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("delete cgroup %q: %w", g.dir, err)
	}
	g.end()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.devices.close()
	g.devices = nil
	return nil
}

// remove removes the directories, the lowest first. There is no process any more
// that could make new ones.
func (g *Group) remove() error {
	var dirs []string
	err := filepath.WalkDir(g.dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, name)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
