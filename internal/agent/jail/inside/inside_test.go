package inside

import (
	"bytes"
	"encoding/binary"
	"io"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHomeOf(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\nbad:x:y:0::/bad:\nuser:x:1000:1000::/home/user:/bin/sh\nagain:x:1000:1::/other:\nshort:x:5\nlast:x:7:7::/last:/bin/sh"
	for uid, want := range map[uint32]string{0: "/root", 1000: "/home/user", 5: "", 7: "/last", 9: ""} {
		if got := homeOf([]byte(passwd), uid); got != want {
			t.Errorf("uid %d: got %q, want %q", uid, got, want)
		}
	}
}

func FuzzHomeOf(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/sh\n"), uint32(0))
	f.Add([]byte("::\n:::::::"), uint32(1))
	f.Fuzz(func(t *testing.T, passwd []byte, uid uint32) {
		home := homeOf(passwd, uid)
		if bytes.ContainsAny([]byte(home), "\x00\n:") {
			t.Errorf("got %q", home)
		}
	})
}

// FuzzReceive reads messages that may be anything, with and without descriptors.
func FuzzReceive(f *testing.F) {
	message := append(binary.BigEndian.AppendUint32(nil, 2), "{}"...)
	f.Add(message, 4, []byte(nil), 0)
	f.Add(message, 2, []byte{1, 2, 3}, unix.MSG_CTRUNC)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, 4, []byte(nil), 0)
	f.Fuzz(func(t *testing.T, data []byte, first int, oob []byte, flags int) {
		if first < 0 || first > len(data) || len(oob) >= unix.SizeofCmsghdr {
			return // descriptors that do not exist cannot arrive
		}
		body, files, err := rest(bytes.NewReader(data[first:]), data[:first], oob, flags)
		if len(files) > 0 || err == nil && len(body) > len(data) {
			t.Errorf("got %d bytes and %d files of %d bytes", len(body), len(files), len(data))
		}
		if first == 0 && err != io.EOF { //nolint:errorlint // as io.Reader's
			t.Errorf("empty message: got %v, want EOF", err)
		}
	})
}

func TestVariable(t *testing.T) {
	env := []string{"PATH=/a", "PATHX=/x", "PATH=/b", "odd"}
	if got := variable(env, "PATH"); got != "/b" {
		t.Errorf("got %q, want the last", got)
	}
}

func TestPlanOnTheWire(t *testing.T) {
	for _, filter := range []Filter{
		{},
		{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}},
		{{Code: 0x1234, Jt: 1, Jf: 255, K: 0xfedcba98}, {Code: 1, Jt: 2, Jf: 3, K: 4}},
	} {
		want := &Plan{Process: Process{Args: []string{"true"}, Filter: filter}}
		b, err := want.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodePlan(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func FuzzDecodePlan(f *testing.F) {
	b, err := (&Plan{Process: Process{Filter: Filter{{Code: 1}}}}).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := decodePlan(b); err == nil && len(p.Process.Filter)*instructionSize > len(b) {
			t.Errorf("%d instructions of %d bytes", len(p.Process.Filter), len(b))
		}
	})
}

func TestFailureAt(t *testing.T) {
	p := &Process{Args: []string{"prog"}, CPUs: []int{7}, Rlimits: []Rlimit{{"RLIMIT_NOFILE", unix.RLIMIT_NOFILE, 1, 2}}}
	for s, want := range map[step]string{
		stepExec:      `exec "prog": permission denied`,
		stepFilter:    "load the system call filter: permission denied",
		stepCalls:     "set the CPU affinity to [7]: permission denied",
		stepCalls + 1: "set RLIMIT_NOFILE to 1:2: permission denied",
		stepCalls + 2: "step 13: permission denied",
		0:             "step 0: permission denied",
	} {
		if got := p.failureAt(s, unix.EACCES).Error(); got != want {
			t.Errorf("step %d: got %q, want %q", s, got, want)
		}
	}
}
