package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// headerVersion is the first byte of every encoded header.
	headerVersion = 1
	// maxID is the greatest length of an id in a header, in bytes.
	maxID = 128
	// maxHeader is the greatest length of an encoded header, in bytes.
	maxHeader = 4 + 1 + maxID + 1 + maxID
)

// ErrHeader is wrapped by every error about a header that is malformed.
var ErrHeader = errors.New("bad stream header")

// Check returns an error that wraps ErrHeader if h may not be sent.
func (h Header) Check() error {
	if (h.Kind == KindPort) != (h.Port != 0) {
		return fmt.Errorf("%w: port %d in one of kind %d", ErrHeader, h.Port, h.Kind)
	}
	switch h.Kind {
	case KindStdio:
		if h.Container == "" {
			return fmt.Errorf("%w: stdio without a container", ErrHeader)
		}
		if h.FD > 2 {
			return fmt.Errorf("%w: descriptor %d", ErrHeader, h.FD)
		}
		if err := checkID(h.Container); err != nil {
			return err
		}
		if h.Exec != "" {
			return checkID(h.Exec)
		}
		return nil
	case KindRPC, KindLog, KindDebug, KindPort, KindNames:
		if h.Container != "" || h.Exec != "" || h.FD != 0 {
			return fmt.Errorf("%w: kind %d names a process", ErrHeader, h.Kind)
		}
		return nil
	}
	return fmt.Errorf("%w: unknown kind %d", ErrHeader, h.Kind)
}

// checkID accepts what containerd accepts for an id, so that an id can be a
// file's name.
func checkID(id string) error {
	if len(id) > maxID {
		return fmt.Errorf("%w: id of %d bytes, at most %d", ErrHeader, len(id), maxID)
	}
	if id == "." || id == ".." {
		return fmt.Errorf("%w: id %q", ErrHeader, id)
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '.', c == '-':
		default:
			return fmt.Errorf("%w: id %q", ErrHeader, id)
		}
	}
	return nil
}

// appendHeader appends the encoding of h to b.
func appendHeader(b []byte, h Header) ([]byte, error) {
	if err := h.Check(); err != nil {
		return nil, err
	}
	b = append(b, headerVersion, byte(h.Kind))
	if h.Kind == KindPort {
		b = binary.BigEndian.AppendUint16(b, h.Port)
	} else {
		b = append(b, h.FD, 0)
	}
	b = append(b, byte(len(h.Container)))
	b = append(b, h.Container...)
	b = append(b, byte(len(h.Exec)))
	return append(b, h.Exec...), nil
}

// ReadHeader reads a header and no byte more. An error that wraps ErrHeader
// means that the other side does not speak the protocol.
func ReadHeader(r io.Reader) (Header, error) {
	var b [maxID]byte
	if _, err := io.ReadFull(r, b[:4]); err != nil {
		return Header{}, fmt.Errorf("read stream header: %w", err)
	}
	if b[0] != headerVersion {
		return Header{}, fmt.Errorf("%w: version %d, this side has %d", ErrHeader, b[0], headerVersion)
	}
	h := Header{Kind: Kind(b[1])}
	switch {
	case h.Kind == KindPort:
		h.Port = binary.BigEndian.Uint16(b[2:4])
	case b[3] != 0:
		return Header{}, fmt.Errorf("%w: reserved byte is %d", ErrHeader, b[3])
	default:
		h.FD = b[2]
	}
	for _, id := range []*string{&h.Container, &h.Exec} {
		if _, err := io.ReadFull(r, b[:1]); err != nil {
			return Header{}, fmt.Errorf("read stream header: %w", noEOF(err))
		}
		n := int(b[0])
		if n > maxID {
			return Header{}, fmt.Errorf("%w: id of %d bytes, at most %d", ErrHeader, n, maxID)
		}
		if _, err := io.ReadFull(r, b[:n]); err != nil {
			return Header{}, fmt.Errorf("read stream header: %w", noEOF(err))
		}
		*id = string(b[:n])
	}
	if err := h.Check(); err != nil {
		return Header{}, err
	}
	return h, nil
}

// noEOF is for reads in the middle of something.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
