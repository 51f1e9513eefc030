package link

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// helloMagic starts both sides' greetings.
	helloMagic = "KATAlink"
	// minVersion and maxVersion of the multiplexer's protocol are those that
	// this side can speak.
	minVersion, maxVersion = 3, 3

	clientHello = len(helloMagic) + 4 // magic, lowest, highest
	serverHello = len(helloMagic) + 6 // magic, lowest, highest, chosen

	// maxLeftover bounds what the server skips before the client's magic:
	// what an earlier client left in a port's buffers.
	maxLeftover = 1 << 20
)

// ErrVersion is wrapped by the error of a side that has no version of the
// protocol in common with the other.
var ErrVersion = errors.New("no common version of the link protocol")

// versionError names both sides' versions.
func versionError(theirMin, theirMax uint16) error {
	return fmt.Errorf("%w: the other side speaks %d to %d, this one %d to %d", ErrVersion, theirMin, theirMax, minVersion, maxVersion)
}

// sendHello greets the server.
func sendHello(w io.Writer) error {
	b := append(make([]byte, 0, clientHello), helloMagic...)
	b = binary.BigEndian.AppendUint16(b, minVersion)
	b = binary.BigEndian.AppendUint16(b, maxVersion)
	if _, err := w.Write(b); err != nil {
		return fmt.Errorf("greet: %w", err)
	}
	return nil
}

// readHello reads the server's answer.
func readHello(r io.Reader) (version uint16, err error) {
	var b [serverHello]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, fmt.Errorf("read greeting: %w", err)
	}
	if string(b[:len(helloMagic)]) != helloMagic {
		return 0, fmt.Errorf("read greeting: %q instead of %q", b[:len(helloMagic)], helloMagic)
	}
	v := b[len(helloMagic):]
	theirMin, theirMax, chosen := binary.BigEndian.Uint16(v), binary.BigEndian.Uint16(v[2:]), binary.BigEndian.Uint16(v[4:])
	if chosen < minVersion || chosen > maxVersion {
		return 0, versionError(theirMin, theirMax)
	}
	return chosen, nil
}

// answerHello waits for a client's greeting and answers it.
func answerHello(r *bufio.Reader, w io.Writer) (version uint16, err error) {
	if err := skipTo(r, helloMagic); err != nil {
		return 0, fmt.Errorf("wait for greeting: %w", err)
	}
	var v [4]byte
	if _, err := io.ReadFull(r, v[:]); err != nil {
		return 0, fmt.Errorf("read greeting: %w", noEOF(err))
	}
	theirMin, theirMax := binary.BigEndian.Uint16(v[:]), binary.BigEndian.Uint16(v[2:])
	// The highest version that both speak, 0 if there is none.
	chosen := min(theirMax, maxVersion)
	if chosen < max(theirMin, minVersion) {
		chosen = 0
	}
	b := append(make([]byte, 0, serverHello), helloMagic...)
	b = binary.BigEndian.AppendUint16(b, minVersion)
	b = binary.BigEndian.AppendUint16(b, maxVersion)
	b = binary.BigEndian.AppendUint16(b, chosen)
	if _, err := w.Write(b); err != nil {
		return 0, fmt.Errorf("answer greeting: %w", err)
	}
	if chosen == 0 {
		return 0, versionError(theirMin, theirMax)
	}
	return chosen, nil
}

// skipTo reads up to and including magic, whose first byte must not occur in
// it again (so that no partial match overlaps another).
func skipTo(r *bufio.Reader, magic string) error {
	matched := 0
	for n := 0; matched < len(magic); n++ {
		if n > maxLeftover {
			return fmt.Errorf("no greeting in %d bytes", maxLeftover)
		}
		c, err := r.ReadByte()
		switch {
		case err != nil:
			return err
		case c == magic[matched]:
			matched++
		case c == magic[0]:
			matched = 1
		default:
			matched = 0
		}
	}
	return nil
}
