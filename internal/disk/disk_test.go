package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/spec"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/testing/protocmp"
)

// machine is a machine that remembers.
type machine struct {
	disks map[string]vmm.Disk
	fail  error // of AddDisk and RemoveDisk, which then do nothing
	// content is what could be read of the latest disk.
	content []byte
	flags   int // its file was opened with
}

func newMachine() *machine { return &machine{disks: map[string]vmm.Disk{}} }

func (m *machine) AddDisk(_ context.Context, d vmm.Disk) (err error) {
	if m.fail != nil {
		return m.fail
	}
	m.disks[d.ID] = d
	m.content, _ = io.ReadAll(io.LimitReader(d.File, 16))
	m.flags, err = unix.FcntlInt(d.File.Fd(), unix.F_GETFL, 0)
	return err
}

func (m *machine) RemoveDisk(_ context.Context, id string) error {
	if m.fail != nil {
		return m.fail
	}
	delete(m.disks, id)
	return nil
}

// unbound is a loop device without a file: it can be opened, and has no content.
const unbound = 7

// needDevice skips a test where block devices cannot be opened.
func needDevice(t *testing.T) string {
	t.Helper()
	f, err := openNumber(7, unbound, os.O_RDONLY)
	if err != nil {
		t.Skipf("needs root and a loop device: %v", err)
	}
	_ = f.Close()
	return fmt.Sprintf("/dev/loop%d", unbound)
}

func image(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, []byte("file system"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRootfsInAFile(t *testing.T) {
	path := image(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		mount    Mount
		readonly bool
		guest    []string
	}{
		"writable":  {Mount{"ext4", path, []string{"loop"}}, false, nil},
		"read-only": {Mount{"ext4", path, []string{"ro", "loop"}}, true, []string{"ro"}},
		"options":   {Mount{"xfs", path, []string{"loop", "nouuid", "noatime"}}, false, []string{"nouuid", "noatime"}},
		"erofs":     {Mount{"erofs", path, []string{"loop"}}, true, []string{"ro"}},
		"by a link": {Mount{"btrfs", link, []string{"loop"}}, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine()
			s := New(m, nil)
			got, err := s.AddRootfs(t.Context(), "c1", tc.mount)
			if err != nil {
				t.Fatal(err)
			}
			want := &agentv1.Storage{Driver: "block", Source: "kata-1", Target: spec.GuestDisks + "/c1", Fstype: tc.mount.Type, Options: tc.guest}
			if d := cmp.Diff(want, got, protocmp.Transform()); d != "" {
				t.Errorf("storage (-want +got):\n%s", d)
			}
			if d := m.disks["kata-1"]; d.ReadOnly != tc.readonly || string(m.content) != "file system" || (m.flags&unix.O_ACCMODE == unix.O_RDONLY) != tc.readonly {
				t.Errorf("disk %+v with flags %o and content %q", d, m.flags, m.content)
			}
			if err := s.Remove(t.Context(), "c1"); err != nil || len(m.disks) > 0 {
				t.Errorf("after Remove: %v, %v", m.disks, err)
			}
		})
	}
}

func TestRootfsIsRefused(t *testing.T) {
	path := image(t)
	for name, tc := range map[string]struct {
		mount Mount
		text  string
		// unsupported errors have a code of their own for an engine.
		unsupported bool
	}{
		"not a block file system":    {Mount{"nfs", path, nil}, `file system "nfs"`, true},
		"a subvolume":                {Mount{"btrfs", path, []string{"loop", "subvolid=5"}}, `option "subvolid=5"`, true},
		"another device":             {Mount{"xfs", path, []string{"loop", "logdev=/dev/sda"}}, `option "logdev=/dev/sda"`, true},
		"another's option":           {Mount{"ext4", path, []string{"loop", "nouuid"}}, `option "nouuid"`, true},
		"a file without option loop": {Mount{"ext4", path, nil}, "option loop is missing", false},
		"a directory":                {Mount{"ext4", filepath.Dir(path), []string{"loop"}}, "neither a block device nor a file", true},
		"a character device":         {Mount{"ext4", "/dev/null", []string{"loop"}}, "neither a block device nor a file", true},
		"nothing":                    {Mount{"ext4", path + "x", []string{"loop"}}, "no such file", false},
		"a relative path":            {Mount{"ext4", "image", []string{"loop"}}, "absolute", false},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine()
			_, err := New(m, nil).AddRootfs(t.Context(), "c1", tc.mount)
			if err == nil || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), "c1") {
				t.Errorf("got %v, want an error with %q", err, tc.text)
			}
			if got := errors.Is(err, errors.ErrUnsupported); got != tc.unsupported {
				t.Errorf("%v: unsupported is %t, want %t", err, got, tc.unsupported)
			}
			if len(m.disks) > 0 {
				t.Errorf("disks: %v", m.disks)
			}
		})
	}
}

// TestClaim: a block device that the host uses is not given away, and one that is
// given away the host cannot use.
func TestClaim(t *testing.T) {
	path := needDevice(t)
	claim := func() (*os.File, error) { return openNumber(7, unbound, os.O_RDWR|unix.O_EXCL) }
	host, err := claim()
	if err != nil {
		t.Fatal(err)
	}
	s := New(newMachine(), nil)
	if _, err := s.AddRootfs(t.Context(), "c1", Mount{Type: "ext4", Source: path}); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "the host uses it") {
		t.Errorf("got %v, want EBUSY", err)
	}
	if _, err := s.AddRootfs(t.Context(), "c1", Mount{Type: "ext4", Source: path, Options: []string{"ro"}}); err != nil {
		t.Errorf("read-only: %v", err)
	}
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := openSource(nil, path, options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := claim(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("the host could claim it as well: %v", err)
	}
}

func TestDevicesAreShared(t *testing.T) {
	needDevice(t)
	m := newMachine()
	s := New(m, nil)
	add := func(container string, d spec.Device) string {
		t.Helper()
		d.Path, d.Major, d.Minor = "/dev/x", 7, unbound
		given, err := s.AddDevice(t.Context(), container, d)
		if err != nil {
			t.Fatal(err)
		}
		if given.GetPath() != "/dev/x" || given.GetAccess() != d.Access {
			t.Errorf("given %v", given)
		}
		return given.GetSerial()
	}
	a := add("c1", spec.Device{Access: "rw"})
	if b := add("c2", spec.Device{Access: "rwm"}); b != a {
		t.Errorf("two containers have %s and %s", a, b)
	}
	ro := add("c2", spec.Device{Access: "r"})
	limited := add("c2", spec.Device{Access: "rw", Limits: spec.DeviceLimits{WriteBytes: 9}})
	if ro == a || limited == a || !m.disks[ro].ReadOnly || m.disks[a].ReadOnly || m.disks[limited].Limits.WriteBytes != 9 {
		t.Errorf("disks: %+v", m.disks)
	}
	if err := s.Remove(t.Context(), "c2"); err != nil || len(m.disks) != 1 {
		t.Errorf("after the second container: %v, %v", m.disks, err)
	}
	if err := s.Remove(t.Context(), "c1"); err != nil || len(m.disks) != 0 {
		t.Errorf("after both: %v, %v", m.disks, err)
	}
	if again := add("c1", spec.Device{Access: "rw"}); again == a {
		t.Errorf("the name %s is used again", a)
	}
}

func TestFailures(t *testing.T) {
	path := image(t)
	m := newMachine()
	s := New(m, nil)
	mount := Mount{"ext4", path, []string{"loop"}}
	broken := errors.New("broken")
	m.fail = broken
	if _, err := s.AddRootfs(t.Context(), "c1", mount); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if len(s.list) > 0 {
		t.Errorf("what was not attached is listed: %v", s.list)
	}
	m.fail = nil
	if _, err := s.AddRootfs(t.Context(), "c1", mount); err != nil {
		t.Fatal(err)
	}
	// What a container has is no other's, whatever its number.
	if given, err := s.AddDevice(t.Context(), "c2", spec.Device{Path: "/dev/x", Access: "r"}); err == nil {
		t.Errorf("another container was given %v", given)
	}
	m.fail = broken
	if err := s.Remove(t.Context(), "c1"); !errors.Is(err, broken) || len(s.list) != 1 {
		t.Errorf("a disk that was not detached: %v, %v", err, s.list)
	}
	m.fail = nil
	if err := s.Remove(t.Context(), "c1"); err != nil || len(s.list)+len(m.disks) > 0 {
		t.Errorf("the next try: %v, %v, %v", err, s.list, m.disks)
	}
	if _, err := s.AddRootfs(t.Context(), "c1", mount); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	m.fail = vmm.ErrGone
	if err := s.Remove(ended, "c1"); err != nil || len(s.list) > 0 {
		t.Errorf("the machine has ended: %v, %v", err, s.list)
	}
	s.turn <- struct{}{}
	if _, err := s.AddRootfs(ended, "c1", mount); !errors.Is(err, context.Canceled) {
		t.Errorf("while another attaches, and the context has ended: %v", err)
	}
	<-s.turn
	if _, err := s.AddDevice(t.Context(), "c1", spec.Device{Path: "/dev/x", Major: 4000, Minor: 1, Access: "r"}); err == nil || !strings.Contains(err.Error(), "4000:1") {
		t.Errorf("a number that nothing has: %v", err)
	}
}

func TestBlockDevice(t *testing.T) {
	path := needDevice(t)
	s := New(newMachine(), nil)
	if d, ok := s.BlockDevice(path); !ok || d.Type != "b" || d.Major != 7 || d.Minor != unbound || d.FileMode == nil {
		t.Errorf("%s: got %+v, %t", path, d, ok)
	}
	// As a guest may make one in a volume.
	node := filepath.Join(t.TempDir(), "node")
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(7, unbound))); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{node, "/dev/null", "/dev", image(t), "/nothing"} {
		if d, ok := s.BlockDevice(other); ok {
			t.Errorf("%s: got %+v", other, d)
		}
	}
}
