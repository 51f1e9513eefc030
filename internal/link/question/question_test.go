package question

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestMessages(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		m    Message
		ok   bool
	}{
		{"question", Message{Tag: 1, Data: make([]byte, MinData)}, true},
		{"by TCP", Message{Tag: 65535, TCP: true, Data: make([]byte, MaxData)}, true},
		{"no answer", Message{Tag: 2}, true},
		{"too short", Message{Data: make([]byte, MinData-1)}, false},
		{"too long", Message{Data: make([]byte, MaxData+1)}, false},
	} {
		var b bytes.Buffer
		err := Write(&b, tt.m)
		if tt.ok != (err == nil) || !tt.ok && (!errors.Is(err, ErrMessage) || b.Len() > 0) {
			t.Errorf("%s: %v, %d bytes written", tt.name, err, b.Len())
		}
		if !tt.ok {
			continue
		}
		got, err := Read(&b)
		if err != nil || got.Tag != tt.m.Tag || got.TCP != tt.m.TCP || !bytes.Equal(got.Data, tt.m.Data) || b.Len() > 0 {
			t.Errorf("%s: read %d %v, %d bytes, %v; %d bytes are left", tt.name, got.Tag, got.TCP, len(got.Data), err, b.Len())
		}
		if _, err := Read(&b); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v after the last", tt.name, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte{0, 1, 0, 0, 0})
	f.Add(append([]byte{0, 1, 1, 0, 12}, make([]byte, 12)...))
	f.Add([]byte{0, 1, 0, 0, 11})
	f.Add([]byte{0, 1, 2, 0, 0})
	f.Add([]byte{0, 1, 0, 255, 255, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := Write(&again, m); err != nil || !bytes.HasPrefix(b, again.Bytes()) {
			t.Errorf("%x: written again as %x, %v", b, again.Bytes(), err)
		}
	})
}
