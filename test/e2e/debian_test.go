//go:build integration

package e2e

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/test/harness"
)

// TestDpkg: Debian's package manager installs and removes a package, with the
// package's own scripts run in the container.
func TestDpkg(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := map[string]string{
		"DEBIAN/control":        "Package: kata-test\nVersion: 1.2\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: for a test\n",
		"DEBIAN/postinst":       "#!/bin/sh\nset -e\necho \"configured on $(hostname)\" > /var/lib/kata-test\nchown daemon:daemon /var/lib/kata-test\n",
		"DEBIAN/postrm":         "#!/bin/sh\nrm -f /var/lib/kata-test\n",
		"usr/bin/kata-test":     "#!/bin/sh\necho installed\n",
		"etc/kata-test.conf":    "a setting\n",
		"usr/share/kata-test/a": strings.Repeat("a", 100_000),
	}
	for name, content := range files {
		path := filepath.Join(dir, "tree", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--build", "--root-owner-group", filepath.Join(dir, "tree"), dir).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
	out := env.MustKata(t, "run", "--rm", "--network", "none", "--hostname", "deb", "-v", dir+":/packages:ro", image(t, "debian"), "sh", "-ec", `
dpkg -i /packages/kata-test_1.2_all.deb >/dev/null
kata-test
dpkg-query -W -f '${Version} ${db:Status-Status}\n' kata-test
stat -c '%U %s' /usr/share/kata-test/a; stat -c %U /var/lib/kata-test; cat /var/lib/kata-test
dpkg --verify kata-test
dpkg -P kata-test >/dev/null
ls -d /usr/bin/kata-test /var/lib/kata-test /usr/share/kata-test 2>/dev/null || echo removed`)
	want(t, out, "installed", "1.2 installed", "root 100000", "daemon", "configured on deb", "removed")
}

// TestSpecialFiles: what programs expect of a root file system besides plain
// files, with both servers of the shared directory.
func TestSpecialFiles(t *testing.T) {
	t.Parallel()
	script := `
cd "$1"
# A socket, with two processes at it.
perl -MIO::Socket::UNIX -e '
	my $l = IO::Socket::UNIX->new(Local => "socket", Listen => 1) or die "listen: $!\n";
	if (!fork) { my $c = IO::Socket::UNIX->new(Peer => "socket") or die "connect: $!\n"; print $c "through a socket\n"; exit }
	my $line = $l->accept->getline; wait; print $line'
stat -c %F socket
# A pipe.
mkfifo pipe; (echo through a pipe > pipe) & cat pipe; wait
# A device.
mknod null c 1 3; echo x > null; stat -c '%t:%T' null
# Links.
echo content > file; ln file hard; ln -s file soft; stat -c %h hard; cat soft; readlink soft
# Owner, mode, times.
chown daemon:bin file; chmod 6751 file; touch -d '2001-02-03 04:05:06 UTC' file; TZ=UTC stat -c '%U:%G %a %y' file
# Renaming over an open file, and a file without a name.
exec 3<file; echo new > other; mv other file; cat file - <&3; rm file hard; exec 3<&-
exec 4<>unnamed; rm unnamed; echo still there >&4; stat -L -c '%s %h' /proc/self/fd/4
perl -e 'open F, "+<&=4"; seek F, 0, 0; print <F>'; exec 4<&-
# Locks are seen by another process.
flock lock sh -c 'flock -n lock true || echo locked'
# A hole; room for a file.
truncate -s 1G sparse; stat -c '%s %b' sparse
# Directories.
mkdir -p a/b/c; rmdir a/b/c; mv a z; find z | sort | tr '\n' ' '; echo
sync
`
	// What the guest's kernel cannot ask for by 9p.
	const more = `
cd "$1"
fallocate -l 1M room; stat -c %s room
touch -d '2001-02-03 04:05:06.789 UTC' file; TZ=UTC stat -c %y file
exec 4<>unnamed; rm unnamed; echo still there >&4; cat /proc/self/fd/4`
	moreLines := []string{"1048576", "2001-02-03 04:05:06.789000000 +0000", "still there"}
	lines := []string{
		"through a socket", "socket", "through a pipe", "1:3", "2", "content", "file",
		"daemon:bin 6751 2001-02-03 04:05:06.000000000 +0000", "new", "content", "12 0", "still there", "locked",
		"1073741824 0", "z z/b ",
	}
	for _, share := range []string{"virtio-fs", "9p"} {
		if share == "virtio-fs" && !hasVirtiofsd() {
			t.Log("virtiofsd is missing: the share is 9p only")
			continue
		}
		e := sharedBy(t, share)
		host := t.TempDir()
		for _, dir := range []string{"/root", "/volume"} {
			t.Run(share+dir, func(t *testing.T) {
				t.Parallel()
				ask, expect := script, lines
				if share == "virtio-fs" {
					ask, expect = script+more, append(slices.Clone(lines), moreLines...)
				}
				out := e.MustKata(t, "run", "--rm", "--network", "none", "-v", host+":/volume", image(t, "debian"), "sh", "-ec",
					`grep -q " / $2 " /proc/mounts || grep " / " /proc/mounts`+ask, "sh", dir, strings.ReplaceAll(share, "-", ""))
				want(t, out, expect...)
			})
		}
	}
}

// hasVirtiofsd reports whether the share can be virtio-fs.
func hasVirtiofsd() bool {
	for _, path := range []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd", "/usr/bin/virtiofsd"} {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return false
}

// sharedBy is the installation with one of the kinds of share.
func sharedBy(t *testing.T, fs string) *harness.Env {
	t.Helper()
	conf, err := os.ReadFile(env.Config)
	if err != nil {
		t.Fatal(err)
	}
	e := *env
	e.Config = filepath.Join(t.TempDir(), "configuration.toml")
	if err := os.WriteFile(e.Config, fmt.Appendf(conf, "\n[hypervisor]\nshared_fs = %q\n", fs), 0o600); err != nil {
		t.Fatal(err)
	}
	return &e
}

// list is a shell script that prints a line for each file of a tree, and one
// for each file's content.
const list = `cd "$1"
find . -mindepth 1 -type d -printf '%P %M %U:%G %T@\n' | sort
find . ! -type d -printf '%P %M %n %U:%G %s %T@ %l\n' | sort
find . -type f -print0 | sort -z | xargs -0 sha256sum`

// TestManyFiles: 10,000 small files of an archive come out the same in the
// container as on the host.
func TestManyFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	archive := manyFiles(t, 10_000)
	if err := os.WriteFile(filepath.Join(dir, "files.tar"), archive, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"host", "guest"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.CommandContext(t.Context(), "tar", "-xpf", filepath.Join(dir, "files.tar"), "-C", filepath.Join(dir, "host")).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	onHost := listing(t, filepath.Join(dir, "host"))
	if n := strings.Count(onHost, "\n"); n < 19_000 {
		t.Fatalf("the host's list has %d lines only", n)
	}
	started := time.Now()
	out := env.MustKata(t, "run", "--rm", "--network", "none", "-v", dir+":/volume", image(t, "debian"), "sh", "-ec", `
LC_ALL=C; export LC_ALL
mkdir /root/files
tar -xpf /volume/files.tar -C /root/files
tar -xpf /volume/files.tar -C /volume/guest
`+list, "sh", "/root/files")
	t.Logf("took %s", time.Since(started).Round(time.Second))
	same(t, "in the root file system", out+"\n", onHost)
	// Each file takes two or three milliseconds of an emulated machine, so
	// here the host looks.
	same(t, "in the volume", listing(t, filepath.Join(dir, "guest")), onHost)
}

// listing is the list of a tree made by the host.
func listing(t *testing.T, dir string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", list, "sh", dir)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// same compares two long texts and tells the first lines that differ.
func same(t *testing.T, what, got, want string) {
	t.Helper()
	g, w := bufio.NewScanner(strings.NewReader(got)), bufio.NewScanner(strings.NewReader(want))
	differ := 0
	for n := 1; ; n++ {
		more, also := g.Scan(), w.Scan()
		if !more && !also {
			return
		}
		if more == also && g.Text() == w.Text() {
			continue
		}
		t.Errorf("%s, line %d: %q, want %q", what, n, g.Text(), w.Text())
		if differ++; differ == 5 {
			return
		}
	}
}

// manyFiles makes an archive of n files, some of them links, in directories.
func manyFiles(t *testing.T, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	random := rand.New(rand.NewPCG(1, 2))
	epoch := time.Unix(1_000_000_000, 0)
	last := ""
	for i := range n {
		dir := fmt.Sprintf("dir-%02d/", i/100)
		if i%100 == 0 {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o750, ModTime: epoch}); err != nil {
				t.Fatal(err)
			}
		}
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: fmt.Sprintf("%sfile-%d", dir, i), Mode: []int64{0o644, 0o600, 0o4755, 0o444}[i%4],
			Uid: i % 7, Gid: i % 5, ModTime: epoch.Add(time.Duration(i) * time.Hour),
		}
		var content []byte
		switch i % 50 {
		case 1:
			h.Typeflag, h.Linkname = tar.TypeSymlink, "../"+last
		case 2:
			h.Typeflag, h.Linkname = tar.TypeLink, fmt.Sprintf("%sfile-%d", dir, i-2)
		default:
			content = make([]byte, random.IntN(2000))
			for j := range content {
				content[j] = byte(random.Uint32())
			}
			h.Size, last = int64(len(content)), h.Name
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
