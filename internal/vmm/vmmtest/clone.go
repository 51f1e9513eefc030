package vmmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/seed-efd44b36/kata/internal/vmm"
)

// testClone saves a machine and makes two of it, one after the other and both
// alive: each has what was there when it was saved, its own devices' other ends,
// and nothing of the other.
func testClone(t *testing.T, d Driver) {
	dir := t.TempDir()
	c := d.config(t)
	share9P(t, &c)
	c.Memory = create(t, filepath.Join(dir, "memory"), int64(c.MemoryMiB)<<20)
	state := create(t, filepath.Join(dir, "state"), 0)
	m, g := d.boot(t, c)
	saver, ok := m.(vmm.Saver)
	if !ok {
		t.Skip("the driver saves no machines")
	}
	g.ask(t, "write", "/token", "of-the-template")
	if err := saver.Save(deadline(t), state); err != nil {
		t.Fatalf("Save: %v", err)
	}
	if exit := m.Kill(deadline(t)); exit.Err != nil {
		t.Errorf("Kill after Save: %v", exit.Err)
	}
	if info, err := state.Stat(); err != nil || info.Size() == 0 {
		t.Fatalf("the state is empty, %v", err)
	}
	before := sum(t, c.Memory.Name())

	first, firstShare := d.clone(t, c, state.Name())
	first.ask(t, "write", "/token", "of-the-first")
	second, secondShare := d.clone(t, c, state.Name())
	if got := second.ask(t, "read", "/token"); got != "of-the-template" {
		t.Errorf("a clone's memory has %q, want what was saved", got)
	}
	if got := first.ask(t, "read", "/token"); got != "of-the-first" {
		t.Errorf("a clone's memory has %q, want its own", got)
	}
	for name, in := range map[string]struct {
		g     *guest
		share string
	}{"first": {first, firstShare}, "second": {second, secondShare}} {
		t.Run("Share/"+name, func(t *testing.T) { testShare(t, in.g, in.share) })
	}
	if after := sum(t, c.Memory.Name()); !bytes.Equal(before, after) {
		t.Error("clones have changed the memory that they are made from")
	}
}

// clone starts a copy of the machine with a shared directory of its own.
func (d Driver) clone(t *testing.T, saved vmm.Config, state string) (*guest, string) {
	t.Helper()
	c := d.config(t)
	shared := share9P(t, &c)
	c.ID += "-" + filepath.Base(c.Dir)
	c.Memory, c.State = open(t, saved.Memory.Name()), open(t, state)
	_, g := d.boot(t, c)
	return g, shared
}

func create(t *testing.T, name string, size int64) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func open(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func sum(t *testing.T, name string) []byte {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, open(t, name)); err != nil {
		t.Fatal(err)
	}
	return h.Sum(nil)
}

// testCannotRestore gives a machine a state that is none: it does not start, and
// says why.
func testCannotRestore(t *testing.T, d Driver) {
	dir := t.TempDir()
	c := d.config(t)
	share9P(t, &c)
	c.Memory = create(t, filepath.Join(dir, "memory"), int64(c.MemoryMiB)<<20)
	if err := os.WriteFile(filepath.Join(dir, "state"), []byte("this is no state"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Memory, c.State = open(t, c.Memory.Name()), open(t, filepath.Join(dir, "state"))
	m := d.machine(t, c)
	err := m.Start(deadline(t))
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Start with a state that is none: %v", err)
	}
	t.Log(err)
	testGone(t, m)
}
