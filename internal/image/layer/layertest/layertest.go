// Package layertest writes tar streams of image layers for tests.
package layertest

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"testing"
	"time"
)

// NeedRoot skips a test that makes device nodes and trusted attributes.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: layers have owners, device nodes and trusted.* attributes")
	}
}

// When is the time of entries.
func When() time.Time { return time.Date(2020, 2, 3, 4, 5, 6, 7000, time.UTC) }

// Entry is the header of a tar entry, root's, of mode 644 or 755 and last
// modified at [When], with the given changes.
func Entry(kind byte, name string, change ...func(*tar.Header)) *tar.Header {
	h := &tar.Header{Typeflag: kind, Name: name, Mode: 0o644, ModTime: When(), Format: tar.FormatPAX, PAXRecords: map[string]string{}}
	if kind == tar.TypeDir {
		h.Mode = 0o755
	}
	for _, c := range change {
		c(h)
	}
	return h
}

// Link sets where a link leads.
func Link(to string) func(*tar.Header) { return func(h *tar.Header) { h.Linkname = to } }

// Mode sets the permission bits.
func Mode(m int64) func(*tar.Header) { return func(h *tar.Header) { h.Mode = m } }

// Owner sets user and group.
func Owner(u, g int) func(*tar.Header) { return func(h *tar.Header) { h.Uid, h.Gid = u, g } }

// Xattr sets an extended attribute.
func Xattr(name, value string) func(*tar.Header) {
	return func(h *tar.Header) { h.PAXRecords["SCHILY.xattr."+name] = value }
}

// Device sets the numbers of a device node.
func Device(major, minor int64) func(*tar.Header) {
	return func(h *tar.Header) { h.Devmajor, h.Devminor = major, minor }
}

// Tar writes a tar stream; regular files contain their own name.
func Tar(t testing.TB, entries ...*tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		if h.Typeflag == tar.TypeReg && h.Size == 0 {
			h.Size = int64(len(h.Name))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, h.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
