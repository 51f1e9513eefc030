package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestFiles(t *testing.T) {
	data, dir := t.TempDir(), t.TempDir()
	for _, name := range []string{"sequential", "random"} {
		if err := os.WriteFile(filepath.Join(data, name), make([]byte, 8*page), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := run([]string{"files", data, dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"read", "reread", "write", "randread", "randwrite"} {
		if f[name] <= 0 {
			t.Errorf("%s: %v", name, f[name])
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestSendAndServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type served struct {
		f   figures
		err error
	}
	done := make(chan served)
	go func() { // ends with the connection; the test waits for it
		f, err := count(l)
		done <- served{f, err}
	}()
	sent, err := run([]string{"send", l.Addr().String(), "0.01"})
	if err != nil || sent["sent"] <= 0 {
		t.Errorf("sent %v, %v", sent, err)
	}
	if s := <-done; s.err != nil || s.f["received"] <= 0 {
		t.Errorf("received %v, %v", s.f, s.err)
	}
}

func TestUsage(t *testing.T) {
	if _, err := run([]string{"fly"}); err == nil {
		t.Error("want an error")
	}
}
