package guestimage

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// errNoPVH says that a kernel cannot be entered by QEMU's direct boot.
var errNoPVH = errors.New("kernel has no PVH entry point (CONFIG_PVH=y is needed)")

// notePVH is the type of the ELF note that holds the PVH entry point; its owner
// is "Xen".
const notePVH = 18

// inspectKernel reads what we need to know of an uncompressed kernel.
func inspectKernel(image []byte) (Kernel, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return Kernel{}, fmt.Errorf("read kernel: %w", err)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != machine {
		return Kernel{}, fmt.Errorf("kernel is for %v, %v is needed", f.Machine, machine)
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return Kernel{}, errNotKernel
	}
	version := kernelVersion(image)
	if version == "" {
		return Kernel{}, errNotKernel
	}
	if !hasPVHNote(f) {
		return Kernel{}, errNoPVH
	}
	return Kernel{
		Version: version,
		// The parameter exists only where devices can be given on the
		// kernel's command line.
		Microvm: bytes.Contains(image, []byte("virtio_mmio.device\x00")),
	}, nil
}

// kernelVersion finds the release (as `uname -r` prints it) in the kernel's
// banner, or returns "". The result has no character that matters in a path.
func kernelVersion(image []byte) string {
	banner := []byte("Linux version ")
	for rest := image; ; {
		_, after, ok := bytes.Cut(rest, banner)
		if !ok {
			return ""
		}
		rest = after
		word, _, ok := bytes.Cut(after[:min(len(after), 66)], []byte(" "))
		if !ok || len(word) == 0 || word[0] < '0' || word[0] > '9' {
			continue
		}
		if bytes.ContainsFunc(word, func(r rune) bool { return r <= ' ' || r == '/' || r > '~' }) {
			continue
		}
		return string(word)
	}
}

func hasPVHNote(f *elf.File) bool {
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		data, err := io.ReadAll(p.Open())
		if err != nil {
			continue
		}
		if hasNote(data, "Xen\x00", notePVH) {
			return true
		}
	}
	return false
}

// hasNote looks for a note in the bytes of a little-endian PT_NOTE segment.
func hasNote(data []byte, owner string, typ uint32) bool {
	align := func(n uint32) int64 { return (int64(n) + 3) &^ 3 }
	for len(data) >= 12 {
		namesz := binary.LittleEndian.Uint32(data)
		descsz := binary.LittleEndian.Uint32(data[4:])
		t := binary.LittleEndian.Uint32(data[8:])
		data = data[12:]
		if align(namesz)+align(descsz) > int64(len(data)) {
			return false
		}
		if t == typ && string(data[:namesz]) == owner {
			return true
		}
		data = data[align(namesz)+align(descsz):]
	}
	return false
}

// checkAgent makes sure that data can be the guest's /init, which starts where
// there is no library and no program interpreter.
func checkAgent(data []byte) error {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("not a program: %w", err)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != machine {
		return fmt.Errorf("program is for %v, %v is needed", f.Machine, machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("program is linked dynamically, build it with CGO_ENABLED=0")
		}
	}
	return nil
}

// slimKernel returns the kernel without what a VMM need not load: section
// headers, symbols, and the zeros at the end of each segment (.bss and .brk,
// which the kernel clears itself and which are zero in a new machine anyway).
func slimKernel(image []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, fmt.Errorf("read kernel: %w", err)
	}
	const ehsize, phsize, page = 64, 56, 4096
	var progs []elf.ProgHeader
	var segments [][]byte
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD && p.Type != elf.PT_NOTE {
			continue
		}
		if p.Off > uint64(len(image)) || p.Filesz > uint64(len(image))-p.Off {
			return nil, fmt.Errorf("kernel is truncated: segment at %#x of %d bytes", p.Off, p.Filesz)
		}
		data := image[p.Off : p.Off+p.Filesz]
		h := p.ProgHeader
		if p.Type == elf.PT_LOAD {
			data = bytes.TrimRight(data, "\x00")
			h.Filesz = uint64(len(data))
			h.Memsz = h.Filesz
		}
		progs = append(progs, h)
		segments = append(segments, data)
	}

	out := make([]byte, ehsize+phsize*len(progs), len(image))
	copy(out, image[:ehsize])
	le := binary.LittleEndian
	le.PutUint64(out[32:], ehsize) // e_phoff
	le.PutUint64(out[40:], 0)      // e_shoff
	le.PutUint16(out[56:], uint16(len(progs)))
	clear(out[58:64]) // e_shentsize, e_shnum, e_shstrndx
	for i, h := range progs {
		for len(out)%page != 0 {
			out = append(out, 0)
		}
		ph := out[ehsize+phsize*i:]
		le.PutUint32(ph, uint32(h.Type))
		le.PutUint32(ph[4:], uint32(h.Flags))
		le.PutUint64(ph[8:], uint64(len(out)))
		le.PutUint64(ph[16:], h.Vaddr)
		le.PutUint64(ph[24:], h.Paddr)
		le.PutUint64(ph[32:], h.Filesz)
		le.PutUint64(ph[40:], h.Memsz)
		le.PutUint64(ph[48:], h.Align) // the loader walks the notes by it
		out = append(out, segments[i]...)
	}
	return out, nil
}
