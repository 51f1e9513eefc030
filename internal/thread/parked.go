package thread

import (
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
// there until Leave.
func Park(name string) *Parked {
	p := &Parked{end: make(chan struct{}), ended: make(chan struct{})}
	begun := make(chan struct{})
	go func() { // ends with Leave
		defer close(p.ended)
		_ = Run(func() error {
			p.TID = unix.Gettid()
			_ = os.WriteFile("/proc/thread-self/comm", []byte(name), 0) // for people
			close(begun)
			<-p.end
			return nil
		})
	}()
	<-begun
	return p
}

// Leave lets the thread end. It may be called again.
func (p *Parked) Leave() {
	p.once.Do(func() { close(p.end) })
	<-p.ended
}
