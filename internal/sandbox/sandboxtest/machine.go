// Package sandboxtest has a fake virtual machine with a guest that does what
// the agent does, or as bad as a test wants. Tests of internal/sandbox and of its
// front ends use it.
package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/seed-efd44b36/kata/internal/tail"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"golang.org/x/sys/unix"
)

// ErrKilled is a reason for a machine's end.
var ErrKilled = errors.New("killed by signal 9")

// Machine is a virtual machine of which only the agent port is real. Its guest
// is a function.
type Machine struct {
	// Port is the guest's end of the agent port.
	Port  net.Conn
	host  net.Conn
	guest func(*Machine)
	done  chan struct{}
	work  sync.WaitGroup
	once  sync.Once
	exit  vmm.Exit // set before done is closed

	mu    sync.Mutex
	disks map[string]vmm.Disk // guarded by mu
}

// NewMachine returns a machine whose guest is the given function, which must
// return when the machine ends.
func NewMachine(guest func(*Machine)) (*Machine, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	m := &Machine{guest: guest, done: make(chan struct{}), disks: map[string]vmm.Disk{}}
	for i, end := range []*net.Conn{&m.host, &m.Port} {
		f := os.NewFile(uintptr(fds[i]), "agent port")
		if *end, err = net.FileConn(f); err != nil {
			return nil, err
		}
		_ = f.Close()
	}
	return m, nil
}

// hold keeps the machine's end of the connection to its file server until the end.
func (m *Machine) hold(server *os.File) error {
	if server == nil {
		return nil
	}
	fd, err := unix.FcntlInt(server.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	m.work.Go(func() {
		<-m.done
		_ = unix.Close(fd)
	})
	return nil
}

// Start implements vmm.Machine.
func (m *Machine) Start(context.Context) error {
	m.work.Go(func() { m.guest(m) })
	return nil
}

// Agent implements vmm.Machine.
func (m *Machine) Agent(context.Context) (net.Conn, error) { return m.host, nil }

// AddDisk implements vmm.Machine.
func (m *Machine) AddDisk(_ context.Context, d vmm.Disk) error {
	if m.Ended() {
		return vmm.ErrGone
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disks[d.ID] = d
	return nil
}

// RemoveDisk implements vmm.Machine.
func (m *Machine) RemoveDisk(_ context.Context, id string) error {
	if m.Ended() {
		return vmm.ErrGone
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.disks, id)
	return nil
}

// Disks are the ids of the disks that are attached.
func (m *Machine) Disks() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.disks))
}

// Console has what a terminal would act on, to be quoted.
func (m *Machine) Console() *tail.Buffer {
	b := tail.New(100)
	_, _ = b.Write([]byte("\x1b[31mguest console\a\r\nlast words\n"))
	return b
}

// Done implements vmm.Machine.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Kill implements vmm.Machine.
func (m *Machine) Kill(context.Context) vmm.Exit {
	m.End(nil)
	// Without a caller of Agent the host's end has no other owner.
	_ = m.host.Close()
	m.work.Wait()
	return m.exit
}

// PIDs has none after the end, as vmm/qemu.
func (m *Machine) PIDs() []int {
	select {
	case <-m.done:
		return nil
	default:
		return []int{os.Getpid()}
	}
}

// End ends the machine; a reason means that nobody asked for it.
func (m *Machine) End(reason error) {
	m.once.Do(func() {
		if reason != nil {
			reason = fmt.Errorf("%w: %w", reason, vmm.ErrGone)
		}
		m.exit = vmm.Exit{Err: reason, Stderr: []byte("qemu: \x1b]0;oh\adear\n"), Console: m.Console().Bytes(), At: time.Now()}
		_ = m.Port.Close()
		close(m.done)
	})
}

// Ended tells whether the machine has ended.
func (m *Machine) Ended() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}
