// Package mirror keeps copies in a guest's memory of the small volumes that the
// kubelet writes: ConfigMaps, Secrets and their like. A file server tells a guest
// nothing of changes on the host, and programs watch their configuration by
// inotify: in a copy that the guest itself changes they see what they would see on
// the host.
//
// Its caller is the sandbox. A volume's files are the engine's word; they are read
// without following a link.
//
// Life cycle: New -> Add, Remove, Discard (any number) -> Close.
package mirror

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/spec"
	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const (
	// interval is how often volumes are looked at. The kubelet takes up to a
	// minute to write what has changed.
	interval = 2 * time.Second
	// restless is how old the last change must be before a volume is believed to
	// rest: another one may have been made within the same tick of the clock.
	restless = time.Second
	// writeTimeout is for one call to the guest.
	writeTimeout = 10 * time.Second
	// lifeless are the attributes of the mounts that volumes are read in.
	lifeless = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW
)

// Set is the mirrored volumes of a sandbox. Its methods are safe for concurrent
// use.
type Set struct {
	host  *os.File      // mount namespace of the volumes
	every time.Duration // volumes are looked at
	write func(context.Context, *agentv1.WriteVolumeRequest) error
	log   *slog.Logger
	work  sync.WaitGroup
	life  context.Context
	end   context.CancelFunc
	watch sync.Once

	mu      sync.Mutex
	volumes map[string][]*volume // guarded by mu: by container
}

// volume is one that is mirrored.
type volume struct {
	container string
	number    uint32
	source    string
	life      context.Context // of what is written
	end       context.CancelFunc

	mu   sync.Mutex        // held while the volume is read and written, which others must wait for
	dir  *os.File          // guarded by mu; nil when it is gone
	seen fs.FileInfo       // guarded by mu; nil: it is to be read
	sum  [sha256.Size]byte // guarded by mu; of what the guest has
	told bool              // guarded by mu; a failure has been
}

// New returns an empty set. host is the mount namespace in which volumes are
// looked up; it stays the caller's. write calls the guest.
func New(host *os.File, write func(context.Context, *agentv1.WriteVolumeRequest) error, log *slog.Logger) *Set {
	s := &Set{host: host, every: interval, write: write, log: log, volumes: map[string][]*volume{}}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// kinds are the directories in which the kubelet has volumes that it writes
// itself.
var kinds = []string{"kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~downward-api"}

// suits tells whether a bind mount is of a volume that the kubelet writes, which
// is .../pods/UID/volumes/KIND/NAME, and which the container may only read.
func suits(b spec.Bind) bool {
	p := strings.Split(filepath.Clean(b.Source), "/")
	n := len(p)
	if !b.ReadOnly || n < 6 || p[n-5] != "pods" || p[n-3] != "volumes" {
		return false
	}
	return slices.Contains(kinds, p[n-2])
}

// Add mirrors a bind mount of a container, if it is one to be mirrored, and
// returns the path of the copy below the directory that the guest has for them,
// or "". On error call Discard.
func (s *Set) Add(ctx context.Context, container string, b spec.Bind) (string, error) {
	if !suits(b) {
		return "", nil
	}
	dir, err := s.open(b.Source)
	if err != nil {
		return "", fmt.Errorf("mirror %s: %w", b.Source, err)
	}
	v := &volume{container: container, number: uint32(b.Mount), source: b.Source, dir: dir}
	v.life, v.end = context.WithCancel(s.life)
	err = s.sync(ctx, v)
	if err != nil {
		v.stop()
	}
	if errors.Is(err, errUnsuitable) {
		s.log.Warn("changes of a volume will not be told to who watches it", "container", container, "volume", b.Source, "why", err)
		return "", nil
	}
	s.mu.Lock()
	s.volumes[container] = append(s.volumes[container], v) // also one that the guest may have in part
	s.mu.Unlock()
	if err != nil {
		return "", fmt.Errorf("mirror %s: %w", b.Source, err)
	}
	s.watch.Do(func() { s.work.Go(s.follow) })
	return filepath.Join(container, strconv.Itoa(b.Mount)), nil
}

// open opens a directory of the host, in a mount of our own that is nowhere: a
// container which can write to the volume may put device nodes there.
func (s *Set) open(path string) (dir *os.File, err error) {
	err = thread.InMounts(s.host, func() error {
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return &os.PathError{Op: "open_tree", Path: path, Err: err}
		}
		dir = os.NewFile(uintptr(fd), path)
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = unix.MountSetattr(int(dir.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: lifeless, Propagation: unix.MS_PRIVATE})
	if err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("mount_setattr: %w", err)
	}
	return dir, nil
}

// follow looks at all volumes from time to time.
func (s *Set) follow() {
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.life.Done():
			return
		}
		for _, v := range s.list() {
			s.look(v)
		}
	}
}

// look brings one volume up to date. What fails is tried again.
func (s *Set) look(v *volume) {
	err := s.sync(v.life, v)
	v.mu.Lock()
	first := !v.told
	v.told = err != nil
	v.mu.Unlock()
	if err != nil && first && v.life.Err() == nil {
		s.log.Warn("a volume in the guest is older than on the host", "container", v.container, "volume", v.source, "error", err)
	}
}

func (s *Set) list() []*volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*volume
	for _, vs := range s.volumes {
		list = append(list, vs...)
	}
	return list
}

// sync makes the guest's copy of a volume the same as the volume, if that has
// changed.
func (s *Set) sync(ctx context.Context, v *volume) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dir == nil {
		return nil
	}
	now := time.Now()
	seen, err := v.dir.Stat()
	if err != nil {
		return err
	}
	if v.seen != nil && seen.ModTime().Equal(v.seen.ModTime()) {
		return nil
	}
	files, err := read(v.dir)
	for range 2 { // it may change meanwhile
		if errors.Is(err, fs.ErrNotExist) {
			files, err = read(v.dir)
		}
	}
	if err != nil {
		return err
	}
	r := &agentv1.WriteVolumeRequest{Container: v.container, Volume: v.number, Files: files}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(b); sum != v.sum {
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		if err := s.write(ctx, r); err != nil {
			return err
		}
		v.sum = sum
	}
	if now.Sub(seen.ModTime()) > restless {
		v.seen = seen
	}
	return nil
}

// Remove forgets the volumes of a container, whose copies go with it. Afterwards
// none is written any more.
func (s *Set) Remove(container string) { s.remove(container) }

func (s *Set) remove(container string) []*volume {
	s.mu.Lock()
	list := s.volumes[container]
	delete(s.volumes, container)
	s.mu.Unlock()
	for _, v := range list {
		v.stop()
	}
	return list
}

// Discard removes the volumes of a container that has not come to be, and their
// copies: nothing in the guest would take these along. After Remove it does nothing.
func (s *Set) Discard(container string) {
	list := s.remove(container)
	ctx, cancel := context.WithTimeout(s.life, writeTimeout)
	defer cancel()
	for _, v := range list {
		if err := s.write(ctx, &agentv1.WriteVolumeRequest{Container: container, Volume: v.number}); err != nil {
			s.log.Warn("the copy of a volume stays in the guest", "container", container, "volume", v.source, "error", err)
		}
	}
}

// stop ends the writing of a volume.
func (v *volume) stop() {
	v.end()
	v.mu.Lock()
	defer v.mu.Unlock()
	_ = v.dir.Close() // nothing has been written to it
	v.dir = nil
}

// Close ends all that goes on.
func (s *Set) Close() {
	s.end()
	s.work.Wait()
	s.mu.Lock()
	var containers []string
	for c := range s.volumes {
		containers = append(containers, c)
	}
	s.mu.Unlock()
	for _, c := range containers {
		s.Remove(c)
	}
}
