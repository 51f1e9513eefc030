// Package question is the form in which questions for a name server, and its answers,
// are on the link: messages of DNS that neither side of it reads.
package question

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

const (
	// MaxData is the greatest length of a message of DNS.
	MaxData = math.MaxUint16
	// MinData is the least: that of its header.
	MinData = 12

	headerSize = 5
)

// ErrMessage is wrapped by errors about a message that is malformed.
var ErrMessage = errors.New("bad question or answer")

// Message is a question or an answer.
type Message struct {
	// Tag is the asker's name for a question; the answer has the same.
	Tag uint16
	// TCP: the question came by a connection, and is to be asked by one.
	TCP bool
	// Data is a message of DNS. An answer without says that there is none.
	Data []byte
}

// Write writes m with one call.
func Write(w io.Writer, m Message) error {
	n := len(m.Data)
	if n != 0 && n < MinData || n > MaxData {
		return fmt.Errorf("%w: it has %d bytes", ErrMessage, n)
	}
	b := make([]byte, headerSize, headerSize+n)
	binary.BigEndian.PutUint16(b, m.Tag)
	if m.TCP {
		b[2] = 1
	}
	binary.BigEndian.PutUint16(b[3:], uint16(n))
	if _, err := w.Write(append(b, m.Data...)); err != nil {
		return fmt.Errorf("write question or answer: %w", err)
	}
	return nil
}

// Read reads a message, and no byte more. io.EOF tells of the end before one.
func Read(r io.Reader) (Message, error) {
	var b [headerSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return Message{}, io.EOF
		}
		return Message{}, fmt.Errorf("read question or answer: %w", err)
	}
	n := int(binary.BigEndian.Uint16(b[3:]))
	if b[2] > 1 || n != 0 && n < MinData {
		return Message{}, fmt.Errorf("%w: protocol %d, %d bytes", ErrMessage, b[2], n)
	}
	m := Message{Tag: binary.BigEndian.Uint16(b[:]), TCP: b[2] == 1}
	if n == 0 {
		return m, nil
	}
	m.Data = make([]byte, n)
	if _, err := io.ReadFull(r, m.Data); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Message{}, fmt.Errorf("read question or answer: %w", err)
	}
	return m, nil
}
