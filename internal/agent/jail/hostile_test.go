package jail

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestHostileRootfs runs containers on images that are made to break out. Nothing
// may come into the directory outside, nor be seen of it.
func TestHostileRootfs(t *testing.T) {
	needRoot(t)
	tests := []struct {
		name string
		// image prepares the rootfs; outside is a directory beside it with a file
		// "secret".
		image  func(t *testing.T, rootfs, outside string)
		edit   func(s *specs.Spec, outside string)
		script string
		want   string // of the output, in part; "" if Create has to fail
	}{
		{
			name:   "dev is a link out",
			image:  func(t *testing.T, rootfs, outside string) { replace(t, rootfs, "dev", outside) },
			script: "echo fine",
			want:   "fine",
		},
		{
			name: "target of a mount is a link out",
			image: func(t *testing.T, rootfs, outside string) {
				link(t, outside, filepath.Join(rootfs, "link"))
			},
			edit: func(s *specs.Spec, outside string) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/link/x", Type: "tmpfs", Source: "tmpfs"})
			},
			script: "echo fine",
			want:   "fine",
		},
		{
			name: "file to be mounted over is a link out",
			image: func(t *testing.T, rootfs, outside string) {
				link(t, filepath.Join(outside, "new"), filepath.Join(rootfs, "etc/hosts"))
			},
			edit: func(s *specs.Spec, outside string) {
				s.Mounts = append(s.Mounts, specs.Mount{
					Destination: "/etc/hosts", Type: "bind", Source: filepath.Join(outside, "secret"), Options: []string{"bind", "ro"},
				})
			},
			script: "cat /etc/hosts",
			want:   "secret",
		},
		{
			name:   "proc is a link",
			image:  func(t *testing.T, rootfs, outside string) { replace(t, rootfs, "proc", "/tmp") },
			script: "echo fine",
		},
		{
			name:   "sys is a link",
			image:  func(t *testing.T, rootfs, outside string) { replace(t, rootfs, "sys", "/tmp") },
			script: "echo fine",
		},
		{
			name: "mount over a file of proc",
			edit: func(s *specs.Spec, outside string) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc/self/attr", Type: "bind", Source: outside, Options: []string{"bind"}})
			},
		},
		{
			name: "mount over a file of proc by a link",
			image: func(t *testing.T, rootfs, outside string) {
				link(t, "/proc/sys", filepath.Join(rootfs, "link"))
			},
			edit: func(s *specs.Spec, outside string) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/link", Type: "bind", Source: outside, Options: []string{"bind"}})
			},
		},
		{
			name: "working directory behind a descriptor",
			edit: func(s *specs.Spec, outside string) { s.Process.Cwd = "/proc/self/fd/7/" },
		},
		{
			name: "working directory behind the agent's root",
			edit: func(s *specs.Spec, outside string) { s.Process.Cwd = "/proc/self/fd/3/.." },
		},
		{
			name: "user database that never ends",
			image: func(t *testing.T, rootfs, outside string) {
				remove(t, filepath.Join(rootfs, "etc/passwd"))
				if err := unix.Mkfifo(filepath.Join(rootfs, "etc/passwd"), 0o666); err != nil {
					t.Fatal(err)
				}
			},
			script: "echo $HOME",
			want:   "/\n",
		},
		{
			name: "no devpts, but something of that name",
			image: func(t *testing.T, rootfs, outside string) {
				if err := os.MkdirAll(filepath.Join(rootfs, "pts"), 0o755); err != nil {
					t.Fatal(err)
				}
				copyTo(t, "/etc/passwd", filepath.Join(rootfs, "pts/ptmx"))
			},
			edit: func(s *specs.Spec, outside string) {
				s.Process.Terminal = true
				s.Mounts[2] = specs.Mount{Destination: "/dev/pts", Type: "bind", Source: filepath.Join(s.Root.Path, "pts"), Options: []string{"bind"}}
			},
		},
		{
			name: "null device that is a file",
			image: func(t *testing.T, rootfs, outside string) {
				copyTo(t, "/etc/passwd", filepath.Join(rootfs, "mydev/null"))
			},
			edit: func(s *specs.Spec, outside string) {
				s.Mounts[1] = specs.Mount{Destination: "/dev", Type: "bind", Source: filepath.Join(s.Root.Path, "mydev"), Options: []string{"bind"}}
				s.Mounts = append(s.Mounts[:2], s.Mounts[5:]...)
			},
			script: "cat /proc/timer_list /proc/keys | wc -c; echo x >/proc/timer_list; cat /dev/null | wc -c",
			want:   "0\n",
		},
		{
			name: "device that is a link",
			image: func(t *testing.T, rootfs, outside string) {
				link(t, filepath.Join(outside, "dev"), filepath.Join(rootfs, "mydev"))
			},
			edit: func(s *specs.Spec, outside string) {
				s.Linux.Devices = []specs.LinuxDevice{{Path: "/mydev", Type: "c", Major: 1, Minor: 3}}
			},
			script: "echo fine",
			want:   "fine",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rootfs := newRootfs(t)
			outside := t.TempDir()
			if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if tt.image != nil {
				tt.image(t, rootfs, outside)
			}
			s := sh(rootfs, tt.script)
			if tt.edit != nil {
				tt.edit(s, outside)
			}
			if tt.want == "" {
				c, err := jailer(t).Create(deadline(t), Config{ID: "hostile", Spec: s})
				if err == nil {
					t.Error("got no error")
					_ = c.Delete(deadline(t))
				}
				t.Log(err)
			} else if got := runJail(t, jailer(t), s); !strings.Contains(got.out, tt.want) || got.code != 0 {
				t.Errorf("got %+v, want %q", got, tt.want)
			}
			left, err := os.ReadDir(outside)
			if err != nil || len(left) != 1 {
				t.Errorf("made outside: %v, %v", left, err)
			}
		})
	}
}

func link(t *testing.T, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, rootfs, name, target string) {
	t.Helper()
	remove(t, filepath.Join(rootfs, name))
	link(t, target, filepath.Join(rootfs, name))
}

// TestNothingIsLeftOpen looks at what the program inherits.
func TestNothingIsLeftOpen(t *testing.T) {
	needRoot(t)
	got := runJail(t, jailer(t), sh(newRootfs(t), "cd /proc/self/fd; for f in *; do test -e $f && echo $f; done"))
	if got.out != "0\n1\n2\n" {
		t.Errorf("got %q", got.out)
	}
	c := startSleeper(t, nil)
	r, err := execIn(t, c, process("sh", "-c", "cd /proc/self/fd; for f in *; do test -e $f && echo $f; done"))
	if err != nil || r.out != "0\n1\n2\n" {
		t.Errorf("exec: got %q, %v", r.out, err)
	}
}

// TestWaitingProcessIsShut makes sure that a container cannot get at a process that
// waits in its pid namespace with the agent's privileges.
func TestWaitingProcessIsShut(t *testing.T) {
	c := startSleeper(t, nil)
	p, err := c.Exec(deadline(t), ExecConfig{Process: process("true")})
	if err != nil {
		t.Fatal(err)
	}
	defer p.discard()
	r, err := execIn(t, c, process("sh", "-c", `
for p in /proc/[0-9]*; do
	if test "$(cat $p/comm)" = exe; then
		echo found
		readlink $p/exe; readlink $p/root; readlink $p/fd/* $p/cwd; readlink $p/task/*/root; cat $p/mem
	fi
done 2>/dev/null`))
	if err != nil || strings.TrimSpace(r.out) != "found" {
		t.Errorf("got %q, %v", r.out, err)
	}
}

func TestFilterIsEnforced(t *testing.T) {
	needRoot(t)
	errno := uint(unix.ENOSYS)
	for _, nnp := range []bool{false, true} {
		s := sh(newRootfs(t), "mkdir /tmp/d; echo $?; grep Seccomp: /proc/self/status; grep CapEff /proc/self/status")
		s.Process.User.UID = 1000
		s.Process.NoNewPrivileges = nnp
		s.Linux.Seccomp = &specs.LinuxSeccomp{
			DefaultAction: specs.ActAllow,
			Syscalls: []specs.LinuxSyscall{
				{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: &errno},
				// What is needed to get here, but for execve, is done by then.
				{Names: []string{"capset", "setresuid", "prctl", "mount"}, Action: specs.ActKillProcess},
			},
		}
		got := runJail(t, jailer(t), s)
		if !strings.Contains(got.out, "not implemented") || !strings.HasSuffix(got.out, "1\nSeccomp:\t2\nCapEff:\t0000000000000000\n") {
			t.Errorf("no_new_privs %v: got %+v", nnp, got)
		}
		// The same holds for further processes.
		c := startSleeper(t, func(conf *Config) { conf.Spec.Linux.Seccomp = s.Linux.Seccomp })
		r, err := execIn(t, c, process("mkdir", "/tmp/d"))
		if err != nil || r.code != 1 || !strings.Contains(r.out, "not implemented") {
			t.Errorf("exec: got %+v, %v", r, err)
		}
	}
}

func TestFilterWithoutExecve(t *testing.T) {
	needRoot(t)
	s := sh(newRootfs(t), "true")
	s.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"execve"}, Action: specs.ActErrno}},
	}
	c, err := jailer(t).Create(deadline(t), Config{ID: "x", Spec: s})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(deadline(t)); !errors.Is(err, ErrPermission) {
		t.Errorf("got %v, want %v", err, ErrPermission)
	}
	if err := c.Delete(deadline(t)); err != nil {
		t.Error(err)
	}
}
