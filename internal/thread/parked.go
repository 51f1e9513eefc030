package thread

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Parked is a thread that does nothing but have an id, which no other process or
// thread has meanwhile, and that /proc knows.
type Parked struct {
	// TID is the thread's id.
	TID int

	once       sync.Once // guards the closing of end
	end, ended chan struct{}
}

// Park starts a thread with a name, of which the kernel shows 15 bytes, that is
// there until Leave. It is in the network namespace of the process pid: whoever
// looks for a network by the thread's id must not find the host's.
func Park(name string, pid int) (*Parked, error) {
	p := &Parked{end: make(chan struct{}), ended: make(chan struct{})}
	begun := make(chan error)
	go func() { // ends with Leave
		defer close(p.ended)
		err := Run(func() error {
			if err := enterNetwork(pid); err != nil {
				return err
			}
			p.TID = unix.Gettid()
			_ = os.WriteFile("/proc/thread-self/comm", []byte(name), 0) // for people
			begun <- nil
			<-p.end
			return nil
		})
		if err != nil {
			begun <- err
		}
	}()
	if err := <-begun; err != nil {
		return nil, err
	}
	return p, nil
}

func enterNetwork(pid int) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer func() { _ = ns.Close() }()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace of process %d: %w", pid, err)
	}
	return nil
}

// Leave lets the thread end. It may be called again.
func (p *Parked) Leave() {
	p.once.Do(func() { close(p.end) })
	<-p.ended
}
