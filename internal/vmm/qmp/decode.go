package qmp

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxLine bounds one message in bytes. The longest that the driver asks for
// are a few KiB.
const maxLine = 1 << 20

// request is what we send.
type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
	ID        uint64          `json:"id"`
}

// message is any of the three things that QEMU sends: a greeting, an answer or
// an event.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID    uint64          `json:"id"` // ours start at 1
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

type decoder struct{ lines *bufio.Scanner }

func newDecoder(r io.Reader) *decoder {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	return &decoder{lines}
}

// next returns the next message. The error is io.EOF at the end of the stream.
func (d *decoder) next() (message, error) {
	for d.lines.Scan() {
		if len(d.lines.Bytes()) == 0 {
			continue
		}
		var m message
		if err := json.Unmarshal(d.lines.Bytes(), &m); err != nil {
			return message{}, fmt.Errorf("decode qmp message: %w", err)
		}
		return m, nil
	}
	switch err := d.lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return message{}, fmt.Errorf("qmp message is longer than %d bytes", maxLine)
	case err != nil:
		return message{}, err
	}
	return message{}, io.EOF
}
