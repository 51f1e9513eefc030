package clients

import (
	"context"
	"net"
	"path/filepath"
	"testing"
)

func TestWait(t *testing.T) {
	t.Parallel()
	var conf net.ListenConfig
	inner, err := conf.Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	l := New(inner)
	l.Wait(t.Context()) // there is none
	var d net.Dialer
	client, err := d.DialContext(t.Context(), "unix", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	l.Wait(ended) // it does not wait for longer
	waited := make(chan struct{})
	go func() { // ends with the connection
		l.Wait(t.Context())
		close(waited)
	}()
	for range 2 {
		_ = conn.Close()
	}
	<-waited
}
