package module

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const list = `boot virtio /m/virtio.ko
boot virtio_pci /m/virtio_pci.ko virtio
lazy netfs /m/netfs.ko
boot 9p /m/9p.ko netfs
net virtio_net /m/virtio_net.ko virtio
`

func TestLoad(t *testing.T) {
	for _, tt := range []struct {
		name string
		load func(s *Set) error
		want []string
		err  string
	}{
		{"phase", func(s *Set) error { return s.LoadPhase(PhaseBoot) }, []string{"virtio", "virtio_pci", "netfs", "9p"}, ""},
		{"name with dependency", func(s *Set) error { return s.Load("virtio-net") }, []string{"virtio", "virtio_net"}, ""},
		{"once", func(s *Set) error { return errors.Join(s.Load("9p"), s.Load("9p", "netfs")) }, []string{"netfs", "9p"}, ""},
		{"built in", func(s *Set) error { return s.Load("overlay") }, nil, ""},
		{"failure", func(s *Set) error {
			s.load = func(string) error { return errors.New("no") }
			return s.Load("9p", "virtio")
		}, nil, "load module 9p: load module netfs: no\nload module virtio: no"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			s, err := parse(list, func(path string) error {
				got = append(got, strings.TrimSuffix(filepath.Base(path), ".ko"))
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := tt.load(s); (err == nil) != (tt.err == "") || err != nil && err.Error() != tt.err {
				t.Errorf("got error %v, want %q", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("loaded (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRequest has names as the kernel asks for them.
func TestRequest(t *testing.T) {
	for args, want := range map[string]string{
		"-q -- virtio_net":           "virtio virtio_net",
		"-q -- virtio-net":           "virtio virtio_net",
		"-q -- rtnl-link-virtio_net": "virtio virtio_net",
		"-q -- fs-9p":                "netfs 9p",
		"-q -- ipt_MARK":             "xt_MARK",
		"-q -- net-pf-99":            "",
		"":                           "",
	} {
		var got []string
		s, err := parse(list+"lazy xt_MARK /m/xt_MARK.ko\n", func(path string) error {
			got = append(got, strings.TrimSuffix(filepath.Base(path), ".ko"))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		err = s.request(strings.Fields(args))
		if g := strings.Join(got, " "); g != want || (err == nil) != (want != "") {
			t.Errorf("%q: loaded %q, %v; want %q", args, g, err, want)
		}
	}
}

func TestBadList(t *testing.T) {
	for _, text := range []string{"boot x\n", "boot x /x.ko y\n"} {
		if _, err := parse(text, nil); err == nil {
			t.Errorf("list %q was accepted", text)
		}
	}
	s, err := Open(filepath.Join(t.TempDir(), "none"))
	if err != nil || s.Load("anything") != nil {
		t.Errorf("missing list: %v", err)
	}
}
