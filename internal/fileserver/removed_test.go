package fileserver

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRemoved: the size of a file without a name can still be set, and the name is looked for in
// vain; neither many of them nor the end keep one.
func TestRemoved(t *testing.T) {
	p := serving(t)
	p.write("file", "content")
	f, err := p.open(opOpen, "/file", unix.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p.must(opRemove, "/file")
	if _, err := p.ask(opLstat, "/file"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("to look for a removed file: %v", err)
	}
	p.must(opTruncate, "/file", uint64(3))
	info, err := f.Stat()
	if err != nil || info.Size() != 3 {
		t.Errorf("the file has %v, %v; want 3 bytes", info, err)
	}

	// A new file of the name is meant from then on.
	p.write("file", "another")
	p.must(opTruncate, "/file", uint64(5))
	if got := p.stat("/file").Size; got != 5 {
		t.Errorf("the new file has %d bytes, want 5", got)
	}
	if info, err := f.Stat(); err != nil || info.Size() != 3 {
		t.Errorf("the removed file has changed: %v, %v", info, err)
	}

	// One that has another name is not kept.
	p.write("one", "")
	if err := os.Link(p.path("one"), p.path("two")); err != nil {
		t.Fatal(err)
	}
	p.must(opRemove, "/one")
	if _, err := p.ask(opTruncate, "/one", uint64(9)); !errors.Is(err, unix.ENOENT) {
		t.Errorf("to change a name that is gone: %v", err)
	}

	for i := range 2 * maxRemoved {
		name := fmt.Sprintf("many-%d", i)
		p.write(name, "")
		p.must(opRemove, "/"+name)
	}
	if _, err := p.ask(opTruncate, "/many-0", uint64(0)); !errors.Is(err, unix.ENOENT) {
		t.Errorf("to change a file that was removed long ago: %v", err)
	}
	p.must(opTruncate, fmt.Sprintf("/many-%d", 2*maxRemoved-1), uint64(0))
}
