package guestimage

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// elfFile describes an ELF file of little use.
type elfFile struct {
	typ      elf.Type
	machine  elf.Machine
	progs    []testProg
	sections map[string]string
}

type testProg struct {
	typ  elf.ProgType
	data []byte
}

func (f elfFile) bytes(t testing.TB) []byte {
	t.Helper()
	if f.machine == 0 {
		f.machine = machine
	}
	var out, names bytes.Buffer
	out.Write(make([]byte, 64+56*len(f.progs)))
	var progs []elf.Prog64
	for _, p := range f.progs {
		progs = append(progs, elf.Prog64{
			Type: uint32(p.typ), Flags: 7, Off: uint64(out.Len()), Vaddr: 0x1000000, Paddr: 0x1000000,
			Filesz: uint64(len(p.data)), Memsz: uint64(len(p.data)), Align: 4,
		})
		out.Write(p.data)
		out.Write(make([]byte, -len(p.data)&3))
	}
	sections := []elf.Section64{{}}
	names.WriteByte(0)
	for _, name := range slices.Sorted(maps.Keys(f.sections)) {
		sections = append(sections, elf.Section64{
			Name: uint32(names.Len()), Type: uint32(elf.SHT_PROGBITS),
			Off: uint64(out.Len()), Size: uint64(len(f.sections[name])),
		})
		names.WriteString(name + "\x00")
		out.WriteString(f.sections[name])
	}
	sections = append(sections, elf.Section64{Type: uint32(elf.SHT_STRTAB), Off: uint64(out.Len()), Size: uint64(names.Len())})
	out.Write(names.Bytes())
	h := elf.Header64{
		Type: uint16(f.typ), Machine: uint16(f.machine), Version: 1, Entry: 0x1000000,
		Phoff: 64, Shoff: uint64(out.Len()), Ehsize: 64, Phentsize: 56, Phnum: uint16(len(progs)),
		Shentsize: 64, Shnum: uint16(len(sections)), Shstrndx: uint16(len(sections) - 1),
	}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	write := func(v any) {
		if err := binary.Write(&out, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	write(sections)
	body := out.Bytes()
	out = bytes.Buffer{}
	write(h)
	write(progs)
	copy(body, out.Bytes())
	return body
}

// testNote is an ELF note with the owner "Xen".
func testNote(typ uint32) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 4)
	b = le.AppendUint32(b, 4)
	b = le.AppendUint32(b, typ)
	return append(b, "Xen\x00\x00\x00\x00\x01"...)
}

const testVersion = "6.1.0-99-test"

// testKernel is an uncompressed kernel that passes inspection and does nothing.
func testKernel(t testing.TB, extra string) []byte {
	t.Helper()
	text := "code Linux version " + testVersion + " (someone) #1\x00" + extra
	return elfFile{typ: elf.ET_EXEC, progs: []testProg{
		{elf.PT_LOAD, append([]byte(text), make([]byte, 8192)...)},
		{elf.PT_NOTE, append(testNote(1), testNote(notePVH)...)},
	}}.bytes(t)
}

// testBzImage wraps a compressed payload in a setup header.
func testBzImage(payload []byte) []byte {
	b := make([]byte, 5*512)
	le := binary.LittleEndian
	b[hdrSetupSects] = 4
	le.PutUint16(b[hdrBootFlag:], 0xaa55)
	copy(b[hdrMagic:], "HdrS")
	le.PutUint16(b[hdrVersion:], 0x020f)
	le.PutUint16(b[hdrXLoadFlags:], 1)
	le.PutUint32(b[hdrPayloadOffset:], 16)
	le.PutUint32(b[hdrPayloadLength:], uint32(len(payload)))
	return slices.Concat(b, make([]byte, 16), payload)
}

// withSize appends the size of what was compressed, as the kernel's build does.
func withSize(payload []byte, size int) []byte {
	return binary.LittleEndian.AppendUint32(payload, uint32(size))
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstdCompressed(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

func lz4Compressed(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := lz4.NewWriter(&out)
	if err := w.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// testModule is a module with the given .modinfo strings.
func testModule(t testing.TB, info ...string) []byte {
	t.Helper()
	var text string
	for _, s := range info {
		text += s + "\x00"
	}
	return elfFile{typ: elf.ET_REL, sections: map[string]string{".modinfo": text}}.bytes(t)
}

// write makes a file and the directories above it.
func write(t testing.TB, data []byte, elem ...string) string {
	t.Helper()
	name := filepath.Join(elem...)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// testModules makes a modules directory with all required modules.
func testModules(t testing.TB, dir string) string {
	t.Helper()
	write(t, []byte("kernel/drivers/virtio/virtio_pci.ko\n"), dir, "modules.builtin")
	write(t, testModule(t, "license=GPL"), dir, "kernel/drivers/virtio/virtio.ko")
	write(t, testModule(t, "depends=virtio", "softdep=pre: nothing-here"), dir, "kernel/drivers/virtio/virtio_ring.ko")
	write(t, testModule(t, "depends=virtio,virtio-ring"), dir, "kernel/drivers/char/virtio_console.ko")
	write(t, gzipped(t, testModule(t, "depends=")), dir, "kernel/net/9p/9pnet.ko.gz")
	write(t, zstdCompressed(t, testModule(t, "depends=9pnet,virtio_ring")), dir, "kernel/net/9p/9pnet_virtio.ko.zst")
	write(t, testModule(t, "depends=9pnet"), dir, "kernel/fs/9p/9p.ko")
	write(t, testModule(t, "depends=virtio_ring"), dir, "kernel/drivers/net/virtio_net.ko")
	write(t, testModule(t, "depends="), dir, "kernel/fs/overlayfs/overlay.ko")
	write(t, testModule(t, "depends=jbd2", "softdep=pre: crypto-crc32c post: x"), dir, "kernel/fs/ext4/ext4.ko")
	write(t, testModule(t, "depends="), dir, "kernel/fs/jbd2/jbd2.ko")
	write(t, testModule(t, "depends="), dir, "kernel/crypto/crc32c_generic.ko")
	return dir
}

// testBuilder has a configured kernel with modules and an agent.
func testBuilder(t testing.TB) *Builder {
	t.Helper()
	dir := t.TempDir()
	kernel := testKernel(t, "")
	return &Builder{
		CacheDir: filepath.Join(dir, "cache"),
		Agent:    write(t, elfFile{typ: elf.ET_EXEC}.bytes(t), dir, "kata-agent"),
		Kernel:   write(t, testBzImage(gzipped(t, kernel)), dir, "boot/vmlinuz"),
		Modules:  testModules(t, filepath.Join(dir, "lib/modules", testVersion)),
		Log:      slog.New(slog.DiscardHandler),
	}
}
