package link

import (
	"io"
	"testing"
)

// TestOnFirst: the first byte is noticed once, by whichever way it is read, on
// every kind of link.
func TestOnFirst(t *testing.T) {
	links(t, func(t *testing.T, o Opener, l Listener) {
		for name, read := range map[string]func(Stream) error{
			"Read": func(st Stream) error { _, err := io.ReadAll(st); return err },
			"Copy": func(st Stream) error { _, err := Copy(io.Discard, st); return err },
		} {
			for _, text := range []string{"", "x", "some more"} {
				client, server := open(t, o, l, Header{Kind: KindStdio, Container: "c", FD: 1})
				noticed := 0
				st := OnFirst(client, func() { noticed++ })
				for _, b := range []byte(text) {
					if _, err := server.Write([]byte{b}); err != nil {
						t.Fatal(err)
					}
				}
				if err := server.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if noticed != 0 {
					t.Errorf("%s: noticed before it was read", name)
				}
				if err := read(st); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if want := min(len(text), 1); noticed != want {
					t.Errorf("%s of %q: noticed %d times", name, text, noticed)
				}
				_ = st.Close()
				_ = server.Close()
			}
		}
	})
}
