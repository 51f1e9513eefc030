package testimage

import (
	"archive/tar"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// busyboxFiles returns the host's busybox, its loader and its libraries, in the
// order in which they are found.
func busyboxFiles() ([]string, error) {
	binary, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("%w; run: apt-get install busybox", err)
	}
	files := []string{binary}
	for i := 0; i < len(files); i++ {
		needed, err := libraries(files[i])
		if err != nil {
			return nil, fmt.Errorf("libraries of %s: %w", files[i], err)
		}
		for _, n := range needed {
			if !slices.Contains(files, n) {
				files = append(files, n)
			}
		}
	}
	return files, nil
}

// libraries returns the paths of what the loader would load for the file.
func libraries(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	if s := f.Section(".interp"); s != nil {
		interp, err := s.Data()
		if err != nil {
			return nil, err
		}
		names = append(names, strings.TrimRight(string(interp), "\x00"))
	}
	var paths []string
	for _, n := range names {
		p, err := findLibrary(n)
		if err != nil {
			return nil, err
		}
		paths = append(paths, p)
	}
	return paths, nil
}

func findLibrary(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	// The loader has a path of its own, the one that programs name.
	for _, dir := range []string{"/lib64", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/lib"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name), nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("%s is not in the usual directories", name)
}

// etc has the files of /etc; "kata" is a user for tests, with a further group.
func etc() map[string]string {
	return map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\n" +
			"daemon:x:1:1:daemon:/usr/sbin:/bin/false\n" +
			"nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n" +
			"kata:x:1000:1000:a user:/home/kata:/bin/sh\n",
		"group":         "root:x:0:\ndaemon:x:1:\ntty:x:5:\nnogroup:x:65534:\nkata:x:1000:\nextra:x:1001:kata\n",
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
		"os-release":    "NAME=\"kata test image\"\nID=kata-test\n",
	}
}

// writeBusybox writes the layer: a small system with busybox's applets as hard
// links.
func writeBusybox(ctx context.Context, w io.Writer, files []string) error {
	list, err := exec.CommandContext(ctx, files[0], "--list-full").Output()
	if err != nil {
		return fmt.Errorf("list busybox's applets: %w", err)
	}
	l := &layer{tar: tar.NewWriter(w), dirs: map[string]bool{".": true}}
	for _, d := range []string{"dev", "home", "mnt", "proc", "run", "srv", "sys", "usr/local/bin", "var/log"} {
		l.dir(d, 0o755, 0)
	}
	l.dir("root", 0o700, 0)
	l.dir("home/kata", 0o755, 1000)
	l.dir("tmp", 0o1777, 0)
	l.dir("var/tmp", 0o1777, 0)

	const busybox = "bin/busybox"
	for i, f := range files {
		name := strings.TrimPrefix(f, "/")
		if i == 0 {
			name = busybox
		}
		data, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		l.file(name, 0o755, data)
	}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != busybox {
			l.add(&tar.Header{Typeflag: tar.TypeLink, Name: applet, Linkname: busybox, Mode: 0o755}, nil)
		}
	}
	contents := etc()
	names := make([]string, 0, len(contents))
	for name := range contents {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		l.file("etc/"+name, 0o644, []byte(contents[name]))
	}
	if l.err != nil {
		return l.err
	}
	return l.tar.Close()
}

// layer writes a tar, with parents before what is in them, until its first error.
type layer struct {
	tar  *tar.Writer
	dirs map[string]bool
	err  error
}

func (l *layer) dir(name string, mode int64, uid int) {
	l.dirs[name] = true
	l.add(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, Uid: uid, Gid: uid}, nil)
}

func (l *layer) file(name string, mode int64, data []byte) {
	l.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))}, data)
}

func (l *layer) add(h *tar.Header, data []byte) {
	if parent := filepath.Dir(strings.TrimSuffix(h.Name, "/")); !l.dirs[parent] {
		l.dir(parent, 0o755, 0)
	}
	if l.err != nil {
		return
	}
	h.ModTime, h.Format = epoch(), tar.FormatPAX
	if l.err = l.tar.WriteHeader(h); l.err == nil {
		_, l.err = l.tar.Write(data)
	}
}
