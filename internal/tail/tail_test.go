package tail

import (
	"bytes"
	"fmt"
	"testing"
)

func TestBufferKeepsTheEnd(t *testing.T) {
	for _, limit := range []int{0, 1, 3, 16, 1000} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			b := New(limit)
			var all []byte
			for i := range 200 {
				piece := bytes.Repeat([]byte{byte(i)}, i%23)
				all = append(all, piece...)
				if n, err := b.Write(piece); n != len(piece) || err != nil {
					t.Fatalf("Write() = %d, %v; want %d, nil", n, err, len(piece))
				}
				want := all[max(0, len(all)-limit):]
				if got := b.Bytes(); !bytes.Equal(got, want) {
					t.Fatalf("after %d bytes: got %v, want %v", len(all), got, want)
				}
				if len(b.buf) > 2*limit {
					t.Fatalf("holds %d bytes, want at most %d", len(b.buf), 2*limit)
				}
			}
		})
	}
}

// TestBufferFrom reads what it has not read, as somebody does who follows.
func TestBufferFrom(t *testing.T) {
	b := New(8)
	var next int64
	for _, tt := range []struct{ write, want string }{
		{"", ""},
		{"ab", "ab"},
		{"", ""},
		{"cdef", "cdef"},
		{"ghijklmnopq", "jklmnopq"}, // what it has missed is gone
		{"r", "r"},
	} {
		_, _ = b.Write([]byte(tt.write))
		var got []byte
		if got, next = b.From(next); string(got) != tt.want {
			t.Errorf("after %q: got %q, want %q", tt.write, got, tt.want)
		}
	}
	for _, tt := range []struct {
		from int64
		want string
	}{{-5, "klmnopqr"}, {0, "klmnopqr"}, {next - 3, "pqr"}, {next, ""}, {next + 5, ""}} {
		if got, _ := b.From(tt.from); string(got) != tt.want {
			t.Errorf("from %d: got %q, want %q", tt.from, got, tt.want)
		}
	}
}
