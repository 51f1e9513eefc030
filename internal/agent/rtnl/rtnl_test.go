package rtnl

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLoopback(t *testing.T) {
	links, err := Links()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Name == "lo" {
			if l.MTU == 0 {
				t.Errorf("lo: %+v, want an MTU", l)
			}
			return
		}
	}
	t.Errorf("no lo among %+v", links)
}

func TestKernelRefuses(t *testing.T) {
	err := SetUp(1<<30, true)
	if !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EPERM) {
		t.Errorf("got %v", err)
	}
}

// message is one answer of the kernel.
func message(kind uint16, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return append(append(b, make([]byte, 10)...), body...)
}

func FuzzAnswers(f *testing.F) {
	r := newRequest(0, 0, ifInfo(1, 2, 3))
	r.attr(unix.IFLA_IFNAME, []byte("eth0\x00"))
	r.attr(unix.IFLA_STATS64, make([]byte, 100))
	f.Add(append(message(unix.RTM_NEWLINK, r.b[unix.SizeofNlMsghdr:]), message(unix.NLMSG_DONE, nil)...))
	f.Add(message(unix.NLMSG_ERROR, []byte{1, 2, 3, 4}))
	f.Fuzz(func(_ *testing.T, b []byte) {
		// Whatever the bytes are, nothing may be read beyond their end.
		_, _ = answers(b, func(body []byte) error {
			_, _ = parseLink(body)
			return nil
		})
	})
}
