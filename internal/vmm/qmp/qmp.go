// Package qmp is a client of QEMU's machine protocol: JSON objects over a
// stream, one per line. It knows the protocol and no single command; the
// driver in vmm/qemu knows those.
//
// Life cycle: Connect -> Execute from any goroutine -> Close, which the owner
// calls also when Done is closed already.
//
// QEMU is the part of the host that a hostile guest is nearest to, so what it
// sends is bounded and nothing of it is trusted: an answer that nobody waits
// for is dropped, a line that is too long or is not JSON ends the connection.
package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed is wrapped by the errors of commands that were not answered
// because the connection had ended.
var ErrClosed = errors.New("qmp connection is closed")

// Command is one request.
type Command struct {
	// Name is QMP's name of it ("query-status").
	Name string
	// Arguments is a JSON object, nil for none.
	Arguments json.RawMessage
	// File, when set, is sent along (for "add-fd" and "getfd"). The caller
	// keeps its own.
	File *os.File
}

// Event is something that happened in QEMU.
type Event struct {
	// Name is QMP's name of it ("SHUTDOWN").
	Name string
	// Data is a JSON object or nil.
	Data json.RawMessage
}

// Error is QEMU's refusal of a command.
type Error struct {
	// Class is "GenericError", "DeviceNotFound", … .
	Class string
	// Desc is meant for people.
	Desc string
}

// Error returns the description.
func (e *Error) Error() string { return e.Desc }

// Client is a connection to one QEMU. It is safe for concurrent use.
type Client struct {
	conn    *net.UnixConn
	handler func(Event)
	done    chan struct{} // closed when the reader has ended
	writing chan struct{} // holds one token: the right to write

	mu      sync.Mutex
	next    uint64                // last id given out
	waiting map[uint64]chan reply // commands without an answer yet
	err     error                 // why the reader ended
}

type reply struct {
	value json.RawMessage
	err   error
}

// Connect takes over conn, reads the greeting and leaves QEMU ready for
// commands. Events go to handler, which is called by the reader: it must return
// soon, and must not call Execute. On error conn is closed.
func Connect(ctx context.Context, conn *net.UnixConn, handler func(Event)) (*Client, error) {
	c := newClient(conn, handler)
	d := newDecoder(conn)
	stop := interrupt(ctx, conn.SetReadDeadline)
	m, err := d.next()
	stop()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err == nil && m.Greeting == nil {
		err = errors.New("no greeting came")
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect to qmp: %w", err)
	}
	go c.read(d) // ends with the connection; Close waits for it
	if _, err := c.Execute(ctx, Command{Name: "qmp_capabilities"}); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("connect to qmp: %w", err)
	}
	return c, nil
}

// Continue is Connect for a connection that another Client has left.
func Continue(conn *net.UnixConn, handler func(Event)) *Client {
	c := newClient(conn, handler)
	go c.read(newDecoder(conn)) // ends with the connection; Close waits for it
	return c
}

func newClient(conn *net.UnixConn, handler func(Event)) *Client {
	return &Client{
		conn:    conn,
		handler: handler,
		done:    make(chan struct{}),
		writing: make(chan struct{}, 1),
		waiting: make(map[uint64]chan reply),
	}
}

// Leave ends the client, but not the connection, which it returns: another one may
// Continue it. No command may be under way.
func (c *Client) Leave() (*os.File, error) {
	conn, err := c.conn.File() // a duplicate
	if err != nil {
		return nil, fmt.Errorf("leave qmp: %w", err)
	}
	return conn, c.Close()
}

// Execute sends a command and returns its answer. The error wraps *Error if
// QEMU refused, ErrClosed if the connection ended, the context's error if that
// ended first (QEMU may then still carry the command out).
func (c *Client) Execute(ctx context.Context, cmd Command) (json.RawMessage, error) {
	id, answer, err := c.expect()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cmd.Name, err)
	}
	defer c.forget(id)
	if err := c.send(ctx, id, cmd); err != nil {
		return nil, fmt.Errorf("%s: %w", cmd.Name, err)
	}
	select {
	case r := <-answer:
		if r.err != nil {
			return nil, fmt.Errorf("%s: %w", cmd.Name, r.err)
		}
		return r.value, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", cmd.Name, ctx.Err())
	}
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection and waits for its reader.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (c *Client) expect() (uint64, <-chan reply, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, nil, c.err
	}
	c.next++
	answer := make(chan reply, 1)
	c.waiting[c.next] = answer
	return c.next, answer, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

func (c *Client) send(ctx context.Context, id uint64, cmd Command) error {
	line, err := json.Marshal(request{Execute: cmd.Name, Arguments: cmd.Arguments, ID: id})
	if err != nil {
		return err
	}
	line = append(line, '\n')
	select {
	case c.writing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.writing }()

	defer interrupt(ctx, c.conn.SetWriteDeadline)()
	var rights []byte
	if cmd.File != nil {
		rights = unix.UnixRights(int(cmd.File.Fd()))
	}
	n, _, err := c.conn.WriteMsgUnix(line, rights, nil)
	if err == nil && n < len(line) {
		_, err = c.conn.Write(line[n:])
	}
	if err == nil {
		return nil
	}
	// Half a command may have been sent: nothing can follow it.
	_ = c.conn.Close()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: %w", ErrClosed, err)
}

// interrupt makes what blocks on a deadline return when the context ends. The
// function that it returns ends that, and leaves no deadline behind.
func interrupt(ctx context.Context, setDeadline func(time.Time) error) (stop func()) {
	ran := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(ran)
		_ = setDeadline(time.Unix(1, 0))
	})
	return func() {
		if !cancel() {
			<-ran
			_ = setDeadline(time.Time{})
		}
	}
}

// read hands answers and events out until the connection ends.
func (c *Client) read(d *decoder) {
	defer close(c.done)
	for {
		m, err := d.next()
		if err != nil {
			c.fail(err)
			return
		}
		switch {
		case m.Event != "":
			if c.handler != nil {
				c.handler(Event{Name: m.Event, Data: m.Data})
			}
		case m.ID != 0:
			c.deliver(m)
		}
	}
}

func (c *Client) deliver(m message) {
	c.mu.Lock()
	answer := c.waiting[m.ID]
	delete(c.waiting, m.ID)
	c.mu.Unlock()
	if answer == nil {
		return // its caller has given up
	}
	if m.Error != nil {
		answer <- reply{err: &Error{Class: m.Error.Class, Desc: m.Error.Desc}}
		return
	}
	answer <- reply{value: m.Return}
}

func (c *Client) fail(err error) {
	_ = c.conn.Close()
	c.mu.Lock()
	c.err = fmt.Errorf("%w: %w", ErrClosed, err)
	waiting := c.waiting
	c.waiting = nil
	err = c.err
	c.mu.Unlock()
	for _, answer := range waiting {
		answer <- reply{err: err}
	}
}
