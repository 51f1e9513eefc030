package fileserver

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzDecode: what decodes is as long as it says, whatever a peer sends.
func FuzzDecode(f *testing.F) {
	zero := uint64(0)
	for op, values := range map[operation][]any{
		opOpen: {"/a", 1}, opCreate: {"/a", 1, 2, 3, 4}, opMknod: {0, 0, "/a", 1, zero}, opMkdir: {0, 0, "/a\x00", 1},
		opSymlink: {0, 0, "x", "/a"}, opLink: {"/a", "/b"}, opLstat: {"/"}, opReadlink: {"/a", 4096}, opChown: {"/a", 1, -1},
		opTruncate: {"/a", zero}, opUtime: {"/a", zero, zero, zero, zero}, opGetxattr: {1, "/a", "user.x"}, opListxattr: {0, "/a"},
		opSetxattr: {"/a", "user.x", "value", 5, 0}, opRemovexattr: {"/a", "user.x"}, opGetversion: {"/a"}, 0: {}, 1 << 31: {"/a"},
	} {
		f.Add(uint32(op), encode(values...))
	}
	f.Add(uint32(opSetxattr), encode("/a", "user.x", "value", 6, 0))
	f.Add(uint32(opLstat), []byte("\xff\xff/"))
	f.Fuzz(func(t *testing.T, op uint32, body []byte) {
		r, err := decode(operation(op), body)
		if err != nil {
			return
		}
		if n := len(r.path) + len(r.target) + len(r.name) + len(r.value); n > len(body) {
			t.Errorf("texts of %d bytes come from a body of %d", n, len(body))
		}
		if r.op != operation(op) || r.op < opOpen || r.op > opGetversion {
			t.Errorf("operation %d was decoded as %d", op, r.op)
		}
	})
}

// TestMessagesThatAreNone end the server, which says why, and hangs up.
func TestMessagesThatAreNone(t *testing.T) {
	for name, test := range map[string]struct {
		message []byte
		want    string
	}{
		"unknown":   {reply(99, nil), "request 99 is unknown"},
		"a reply":   {reply(replySuccess, number(0)), "request 0 is unknown"},
		"too large": {[]byte{byte(opLstat), 0, 0, 0, 1, 0, 1, 0}, "request of 65537 bytes"},
		"too short": {reply(uint32(opLstat), []byte{9, 0, '/'}), "does not end where it should"},
		"too long":  {reply(uint32(opLstat), encode("/", 1)), "does not end where it should"},
		"no body":   {reply(uint32(opUtime), nil), "does not end where it should"},
		"wrong size of an attribute": {
			reply(uint32(opSetxattr), encode("/", "user.x", "value", 60000, 0)), "does not end where it should",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := serving(t)
			if _, err := p.conn.Write(test.message); err != nil {
				t.Fatal(err)
			}
			<-p.server.Done()
			if err := p.server.Err(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("it ended with %v, want %q", err, test.want)
			}
			if n, err := p.conn.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("the peer reads %d bytes, %v", n, err)
			}
		})
	}
}

// TestEnds: a peer that hangs up ends the server, and so does Close, with a
// request half sent.
func TestEnds(t *testing.T) {
	p := serving(t)
	p.stat("/")
	if err := p.conn.Close(); err != nil {
		t.Fatal(err)
	}
	<-p.server.Done()
	if err := p.server.Err(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	p = serving(t)
	if _, err := p.conn.Write(reply(uint32(opLstat), encode("/"))[:5]); err != nil {
		t.Fatal(err)
	}
	p.server.Close()
	p.server.Close()
	if err := p.server.Err(); err != nil {
		t.Errorf("it was closed, and ended with %v", err)
	}
	if _, err := p.conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the peer reads: %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	if _, err := Start("/none"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "start file server of /none: ") {
		t.Errorf("of a directory that is none: %v", err)
	}
	if _, err := Start("/dev/null"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("of a device: %v", err)
	}
}
