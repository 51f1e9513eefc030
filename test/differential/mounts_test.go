//go:build integration

package differential

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func bind(source, destination string, options ...string) specs.Mount {
	return specs.Mount{Source: source, Destination: destination, Type: "bind", Options: append([]string{"rbind"}, options...)}
}

// mounted: binds of files and directories, destinations that are missing or
// behind symlinks, tmpfs with all its options.
func mounted(t *testing.T, b *bundle) {
	link := func(target, name string) {
		if err := os.Symlink(target, filepath.Join(b.Rootfs, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("/srv", "absolute")
	link("../../../../srv", "escaping")
	link("/missing/target", "dangling")
	link("/etc", "conf")
	b.file(t, "rw/kept", "from the host\n")
	b.file(t, "ro/kept", "from the host\n")
	b.file(t, "sub/dir/inside", "deep\n")
	rwFile, roFile := b.file(t, "rw-file", "rw\n"), b.file(t, "ro-file", "ro\n")
	program := b.file(t, "noexec/program", "#!/bin/sh\necho ran\n")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.Rootfs, "srv", "image"), []byte("of the image\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(b.Dir, name) }
	b.mount(
		bind(in("rw"), "/mnt/rw", "rw"),
		bind(in("ro"), "/mnt/ro", "ro"),
		bind(in("rw"), "/mnt/plain", "ro", "nosuid", "nodev", "noexec", "noatime"),
		bind(in("noexec"), "/mnt/noexec", "noexec"),
		bind(rwFile, "/etc/rw-file", "rw"),
		bind(roFile, "/new/directories/ro-file", "ro"),
		bind(in("sub"), "/absolute/sub"),
		bind(in("sub"), "/escaping/up"),
		bind(in("sub"), "/conf/sub"),
		bind(in("sub/dir"), "/mnt/rw/nested"),
		specs.Mount{Destination: "/mnt/tmpfs", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m", "mode=0751", "uid=7", "gid=8", "nosuid", "noexec", "nr_inodes=50"}},
		specs.Mount{Destination: "/mnt/rotmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}},
		specs.Mount{Destination: "/srv", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup", "mode=755"}},
	)
	b.Spec.Linux.MaskedPaths = append(b.Spec.Linux.MaskedPaths, "/conf/group", "/home", "/not/there")
	b.Spec.Linux.ReadonlyPaths = append(b.Spec.Linux.ReadonlyPaths, "/var", "/not/there/either", "/conf/passwd")
}

func mountProbes() []probe {
	return []probe{
		{"mounts", mountinfo + " | grep -v -e cgroup -e ' / ' | cut -d ' ' -f 2-"},
		{"writable directory", "cat /mnt/rw/kept; echo new > /mnt/rw/new; echo more >> /mnt/rw/kept; mkdir /mnt/rw/dir; cat /mnt/rw/kept"},
		{"read-only directory", "cat /mnt/ro/kept; echo new > /mnt/ro/new; echo x >> /mnt/ro/kept; rm /mnt/ro/kept; mkdir /mnt/ro/d; chmod 777 /mnt/ro/kept; mount -o remount,rw /mnt/ro"},
		{"same directory twice", "cat /mnt/plain/new; echo x > /mnt/plain/x"},
		{"no programs", "/mnt/noexec/program; sh /mnt/noexec/program"},
		{"writable file", "cat /etc/rw-file; echo written > /etc/rw-file; rm /etc/rw-file; mv /etc/rw-file /etc/x"},
		{"read-only file", "cat /new/directories/ro-file; echo x > /new/directories/ro-file"},
		{"through symlinks", "cat /absolute/sub/dir/inside /escaping/up/dir/inside /etc/sub/dir/inside; ls -l / | grep -c -e '->'; for f in absolute escaping conf; do readlink /$f; done"},
		{"in a mount", "cat /mnt/rw/nested/inside"},
		{"tmpfs", "stat -c '%a %u:%g' /mnt/tmpfs; df -k /mnt/tmpfs | awk 'NR > 1 { print $2 }'; cp /bin/busybox /mnt/tmpfs/b; touch /mnt/tmpfs/p; chmod +x /mnt/tmpfs/p; /mnt/tmpfs/p"},
		{"number of files", "i=0; while [ $i -lt 60 ]; do : > /mnt/tmpfs/f$i || break; i=$((i+1)); done; echo $i"},
		{"read-only tmpfs", "touch /mnt/rotmp/x"},
		{"copied up", "ls -l /srv | awk '{ print $1, $3, $4, $5, $9 }'; cat /srv/image; echo changed > /srv/image"},
		{"masked", "cat /etc/group | wc -c; ls -a /home; touch /home/x"},
		{"read-only", "touch /var/x; echo x >> /etc/passwd"},
		{"made directories", "stat -c '%a %u:%g %F %n' /new /new/directories /mnt/rotmp /mnt/plain"},
	}
}

// hostFiles tells what the host sees of the mounts afterwards.
func hostFiles(t *testing.T, b *bundle) string {
	t.Helper()
	var out strings.Builder
	for _, name := range []string{"rw", "ro", "rw-file", "ro-file", "sub", "rootfs/srv", "rootfs/new", "rootfs/etc/rw-file", "rootfs/etc/passwd", "rootfs/dangling", "rootfs/etc/sub"} {
		err := filepath.WalkDir(filepath.Join(b.Dir, name), func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			st, err := d.Info()
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, "%s %v", path, st.Mode())
			if d.Type().IsRegular() {
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				fmt.Fprintf(&out, " %q", data)
			}
			out.WriteByte('\n')
			return nil
		})
		if err != nil {
			fmt.Fprintf(&out, "%s: %v\n", name, err)
		}
	}
	return out.String()
}

// volume: the same questions are asked of a bind mount and of the root, which
// the guest gets by a file server.
func volume(t *testing.T, b *bundle) {
	b.file(t, "volume/file", "content\n")
	b.mount(bind(filepath.Join(b.Dir, "volume"), "/volume", "rw"))
}

func fileProbes() []probe {
	// A shell needs a new process for most of what it does, which is slow in an
	// emulated machine; so the root is asked by one program only.
	probes := []probe{
		{"system calls in the root", "mkdir /var/tmp/t; probe files /var/tmp/t"},
		{"system calls in a volume", "mkdir /volume/c; probe files /volume/c; rmdir /volume/c"},
	}
	for _, p := range []probe{
		{"owner and mode", "touch a; chown 12:34 a; chmod 4751 a; stat -c '%a %u:%g %F' a; chmod 600 a; stat -c %a a; chown 1 a; ls -ln a | cut -c 1-32"},
		{"links", "echo one > a; ln a b; echo two >> b; cat a; stat -c %h a; ln -s a c; cat c; readlink c; rm a; cat b; cat c"},
		{"rename", "echo 1 > a; echo 2 > b; mv a b; cat b; mkdir d e; mv b d/; mv d e/; cat e/d/b; mv e e/d"},
		{"special files", "mkfifo p; stat -c %F p; (echo through > p &); cat p; mknod n c 1 3; stat -c '%F %t %T' n; echo x > n"},
		{"removed but open", "echo kept > a; exec 3< a; rm a; cat <&3; ls; stat -L -c '%s %h' /proc/self/fd/3"},
		{"written after removal", "exec 3<> a; rm a; echo data >&3; stat -L -c %s /proc/self/fd/3"},
		{"append", "for i in 1 2 3 4 5 6 7 8; do echo line >> a & done; wait; wc -l < a"},
		{"truncate and holes", "truncate -s 5000000 a; stat -c '%s %b' a; printf x | dd of=a bs=1 seek=1000000 conv=notrunc 2> /dev/null; stat -c %s a; truncate -s 3 a; stat -c %s a; sha256sum a"},
		{"times", "touch -d '2001-02-03 04:05:06' a; stat -c '%Y %X' a; touch b; [ b -nt a ] && echo newer; mkdir d; touch -d '2011-01-01 00:00:00' d; stat -c %Y d; touch d/x; [ d -nt b -o $(stat -c %Y d) -gt 1500000000 ] && echo changed"},
		{"many files", "i=0; while [ $i -lt 100 ]; do echo $i > f$i; i=$((i+1)); done; ls | wc -l; cat f* | sort -n | sha256sum; rm f*; ls | wc -l"},
		{"deep and long names", "d=$(printf 'n%.0s' $(seq 1 200)); mkdir -p $d/$d/$d; touch $d/$d/$d/x; find . -name x | wc -c; rm -r $d; touch $(printf 'n%.0s' $(seq 1 256)) 2>&1 | grep -o 'File name.*'"},
		{"strange names", "touch -- 'a b' '*' 'newline\nin' 'ünï' '-x' \"quote'\"; ls | sort; rm -f ./*; ls -a"},
		{"big file", "seq 1 100000 > a; sha256sum a; cp a b; cmp a b && wc -c < b"},
		{"directories", "mkdir d; rmdir d; mkdir d; touch d/x; rmdir d; rm d; chmod 1777 d; stat -c '%a %h' d; mkdir d"},
		{"exclusive", "set -C; echo x > a; echo y > a; cat a"},
		{"program", "cp /bin/busybox busybox; ./busybox echo runs; ./busybox sleep 1 & sleep 0.2; echo x >> busybox; cp /bin/busybox busybox; wait; ./busybox echo again"},
		{"permission of others", "echo secret > a; chmod 600 a; probe as 1000 /bin/cat a; mkdir d; chmod 755 d; probe as 1000 /bin/touch d/x; chmod 777 d; probe as 1000 /bin/touch d/x; stat -c %u d/x"},
		{"set-group-id directory", "mkdir d; chown 0:77 d; chmod 2775 d; touch d/f; mkdir d/g; stat -c '%a %g' d/f d/g"},
		{"permission to run", "printf '#!/bin/sh\\necho script\\n' > s; ./s; chmod 100 s; probe as 1000 ./s; chmod 755 s; ./s"},
		{"sync", "echo x > a; sync; df . > /dev/null && echo counted"},
		{"tar", "mkdir src; for i in 1 2 3 4 5; do echo $i > src/$i; done; ln src/1 src/l; ln -s 2 src/s; tar c src | (mkdir out; cd out; tar x; ls -ln src | awk '{ print $1, $2, $3, $4, $5, $9, $10, $11 }' | grep -v total)"},
	} {
		probes = append(probes, probe{p.name, fmt.Sprintf("mkdir /volume/t; cd /volume/t; (%s\n); r=$?; cd /; rm -rf /volume/t; exit $r", p.script)})
	}
	return append(probes, probe{"file of the host", "cat /volume/file; stat -c '%a %u:%g %s' /volume/file"})
}

// propagating: the container sees its mounts as slaves of the host's.
func propagating(_ *testing.T, b *bundle) {
	b.Spec.Linux.RootfsPropagation = "rslave"
	caps := append(dockerCapabilities(), "CAP_SYS_ADMIN")
	b.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	b.mount(
		specs.Mount{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"rw", "shared"}},
		specs.Mount{Destination: "/srv", Type: "tmpfs", Source: "tmpfs", Options: []string{"rw", "unbindable"}},
		specs.Mount{Destination: "/var/log", Type: "tmpfs", Source: "tmpfs", Options: []string{"rw", "slave"}},
	)
}
