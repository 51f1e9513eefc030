// Package clients waits for those who are connected to hang up. The ttrpc server
// closes connections under calls that have not been answered, but whoever has asked
// for the end of the shim closes its own when it has the answer.
package clients

import (
	"context"
	"net"
	"sync"
)

// Listener is a listener whose connections can be waited for. It is safe for
// concurrent use.
type Listener struct {
	net.Listener

	mu   sync.Mutex
	open int           // guarded by mu
	none chan struct{} // guarded by mu: closed when none is open; nil while nobody waits
}

// New watches over the connections of l.
func New(l net.Listener) *Listener { return &Listener{Listener: l} }

// Accept implements net.Listener.
func (c *Listener) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open++
	return &client{Conn: conn, gone: sync.OnceFunc(c.left)}, nil
}

func (c *Listener) left() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.open == 0 && c.none != nil {
		close(c.none)
		c.none = nil
	}
}

// Wait waits until no connection is open, or ctx ends.
func (c *Listener) Wait(ctx context.Context) {
	c.mu.Lock()
	none := make(chan struct{})
	if c.open == 0 {
		close(none)
	} else {
		c.none = none
	}
	c.mu.Unlock()
	select {
	case <-none:
	case <-ctx.Done():
	}
}

// client is one connection.
type client struct {
	net.Conn

	gone func()
}

// Close implements net.Conn.
func (c *client) Close() error {
	defer c.gone()
	return c.Conn.Close()
}
