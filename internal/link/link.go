// Package link carries typed streams between the host and the guest, and
// between a command line and kata-proxy. See docs/link.md for the wire format.
//
// Over virtio-serial one byte stream is multiplexed; over vsock and unix
// sockets each stream is a connection of its own. The API is the same.
package link

import (
	"context"
	"net"
)

// Kind says what a stream carries.
type Kind uint8

// The kinds of streams. A receiver refuses any other.
const (
	KindRPC   Kind = 1 // ttRPC
	KindStdio Kind = 2 // one of stdin, stdout, stderr of a process
	KindLog   Kind = 3 // the agent's log, lines of JSON, guest to host
	KindDebug Kind = 4 // a debug shell
	KindPort  Kind = 5 // a connection to a TCP port on the guest's loopback
	KindNames Kind = 6 // questions for the name server in the namespace, and answers (package question)
)

// Header is the first thing on every stream.
type Header struct {
	Kind Kind
	// Container and Exec name the process of a stdio stream, FD which of its
	// descriptors: 0, 1 or 2. Exec is empty for the init process.
	Container, Exec string
	FD              uint8
	// Port of a port stream, not 0.
	Port uint16
}

// Stream is a connection whose two directions end apart from each other.
type Stream interface {
	net.Conn
	// CloseWrite tells the other side that no more will be written. Reading
	// goes on. Close ends both directions: what was written is delivered, and
	// the other side's writes fail with EPIPE.
	CloseWrite() error
}

// Opener opens streams to the other side. Implementations are safe for
// concurrent use.
type Opener interface {
	// Open opens a stream and sends its header.
	Open(ctx context.Context, h Header) (Stream, error)
	// Close closes the link and every stream of it, but for DialUnix's.
	Close() error
}

// Listener receives the streams that the other side opens.
type Listener interface {
	// Accept returns the next stream and its header, which is well formed but
	// not otherwise checked. After the link has ended it returns an error that
	// wraps net.ErrClosed.
	Accept() (Stream, Header, error)
	// Close ends the link. For a link of connections, streams that were
	// accepted before stay open; for a multiplexed one they end too.
	Close() error
}
