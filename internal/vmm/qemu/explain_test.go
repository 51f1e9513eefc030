package qemu

import (
	"errors"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-efd44b36/kata/internal/supervise"
	"github.com/seed-efd44b36/kata/internal/vmm"
)

func TestExplain(t *testing.T) {
	const console = "[    1.4] before\r\n[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n[    1.6] CPU: 0\r\n"
	killed := supervise.Exit{Code: -1, Signal: syscall.SIGKILL}
	for _, test := range []struct {
		name string
		end  ending
		want string // "" for no error
	}{
		{"killed by us", ending{process: killed, killed: true}, ""},
		{"killed by another", ending{process: killed}, "qemu ended: killed by signal 9 (killed)"},
		{"it had ended when we killed it", ending{killed: true, console: []byte(console)}, "the guest's kernel panicked"},
		{"failure", ending{process: supervise.Exit{Code: 1}, stderr: []byte("no room\n")}, "qemu ended: exit status 1\nqemu's last words:\n  no room"},
		{
			"no 9p",
			ending{process: supervise.Exit{Code: 1}, stderr: []byte("qemu: -fsdev proxy,id=share,sock_fd=6: fsdev: fsdriver proxy not found\n")},
			`install virtiofsd and set hypervisor.shared_fs to "virtio-fs"`,
		},
		{
			"panic",
			ending{reason: "guest-reset", console: []byte(console)},
			`the guest's kernel panicked: "VFS: Unable to mount root fs"` + "\nthe guest's console:\n  [    1.4] before",
		},
		{"power off", ending{reason: "guest-shutdown"}, "the guest powered itself off"},
		{"reboot", ending{reason: "guest-reset"}, "the guest rebooted"},
		{"signal", ending{reason: "host-signal"}, "qemu was asked to end by a signal"},
		{"unknown", ending{}, "qemu ended: exit status 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := test.end.explain()
			if test.want == "" {
				if err != nil {
					t.Errorf("explain() = %v, want nothing", err)
				}
				return
			}
			if !errors.Is(err, vmm.ErrGone) || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "CPU: 0") {
				t.Errorf("explain() = %v, want ErrGone and %q", err, test.want)
			}
		})
	}
}

// What the guest writes never reaches a terminal as it is, and not at any
// length.
func FuzzEvidence(f *testing.F) {
	f.Add([]byte("\x1b[2Jcleared\n"), []byte("\u202e\x9b31m\n"))
	f.Add([]byte(strings.Repeat("line\n", 1000)), []byte(strings.Repeat("x", 100000)))
	f.Add([]byte("\xff\xfe"), []byte("Kernel panic - not syncing: \x1b]0;title\x07"))
	f.Fuzz(func(t *testing.T, stderr, console []byte) {
		end := ending{stderr: stderr, console: console}
		text := end.explain().Error()
		for _, r := range text {
			if r != '\n' && !strconv.IsPrint(r) {
				t.Fatalf("%q holds %q", text, r)
			}
		}
		const limit = 2*(evidenceLines+1)*(4*evidenceWidth+100) + 2000
		if len(text) > limit {
			t.Errorf("%d bytes, want at most %d", len(text), limit)
		}
	})
}
