// Package rtnl configures network interfaces over rtnetlink: as much of it as
// the agent needs, on a socket of its own for each call.
//
// What the kernel answers is trusted to be true but not to be well formed: the
// decoders check every length.
package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// errShort means that a message ends too early.
var errShort = errors.New("malformed netlink message")

// request builds a message: its header, a fixed part, then attributes.
type request struct{ b []byte }

// newRequest starts a message of the given type and flags.
func newRequest(kind, flags uint16, fixed []byte) *request {
	r := &request{make([]byte, unix.SizeofNlMsghdr, 256)}
	binary.NativeEndian.PutUint16(r.b[4:], kind)
	binary.NativeEndian.PutUint16(r.b[6:], flags|unix.NLM_F_REQUEST)
	r.b = append(r.b, fixed...)
	return r
}

// attr adds an attribute.
func (r *request) attr(kind uint16, value []byte) {
	r.b = binary.NativeEndian.AppendUint16(r.b, uint16(unix.SizeofRtAttr+len(value)))
	r.b = binary.NativeEndian.AppendUint16(r.b, kind)
	r.b = append(r.b, value...)
	r.pad()
}

func (r *request) uint32(kind uint16, v uint32) {
	r.attr(kind, binary.NativeEndian.AppendUint32(nil, v))
}

// nest adds an attribute that has attributes.
func (r *request) nest(kind uint16, fill func()) {
	at := len(r.b)
	r.attr(kind, nil)
	fill()
	binary.NativeEndian.PutUint16(r.b[at:], uint16(len(r.b)-at))
}

func (r *request) pad() {
	for len(r.b)%unix.NLMSG_ALIGNTO != 0 {
		r.b = append(r.b, 0)
	}
}

// do sends the message and calls each with the body of every answer.
func (r *request) do(each func(body []byte) error) error {
	send, err := r.prepare(each)
	if err != nil {
		return err
	}
	return send()
}

// prepare returns what does do, for the network namespace of the calling thread.
func (r *request) prepare(each func(body []byte) error) (send func() error, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	// A dump ends by itself; a change is answered only when that is asked for.
	// NLM_F_DUMP has bits that mean NLM_F_REPLACE in a change.
	if flags := binary.NativeEndian.Uint16(r.b[6:]); flags&unix.NLM_F_DUMP != unix.NLM_F_DUMP {
		binary.NativeEndian.PutUint16(r.b[6:], flags|unix.NLM_F_ACK)
	}
	binary.NativeEndian.PutUint32(r.b, uint32(len(r.b)))
	return func() error {
		defer unix.Close(fd)
		return exchange(fd, r.b, each)
	}, nil
}

// exchange sends a message and calls each with the body of every answer.
func exchange(fd int, message []byte, each func(body []byte) error) error {
	if err := unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	buf := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("netlink: %w", err)
		}
		over, err := answers(buf[:n], each)
		if over || err != nil {
			return err
		}
	}
}

// answers calls each with the body of every message in b, until one says that
// all is over.
func answers(b []byte, each func(body []byte) error) (over bool, err error) {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlMsghdr {
			return true, errShort
		}
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return true, errShort
		}
		body := b[unix.SizeofNlMsghdr:size]
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_NOOP:
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return true, errShort
			}
			if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
				return true, unix.Errno(-code)
			}
			return true, nil
		default:
			if each != nil {
				if err := each(body); err != nil {
					return true, err
				}
			}
		}
		b = b[min(align(size), len(b)):]
	}
	return false, nil
}

// attributes calls each with every attribute in b.
func attributes(b []byte, each func(kind uint16, value []byte)) error {
	for len(b) > 0 {
		if len(b) < unix.SizeofRtAttr {
			return errShort
		}
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return errShort
		}
		each(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofRtAttr:size])
		b = b[min(align(size), len(b)):]
	}
	return nil
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }
