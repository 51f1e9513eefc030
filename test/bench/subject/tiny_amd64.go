package subject

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"slices"
)

// machine is the type of QEMU's machine that the bare boot uses.
const machine = "q35"

// The last instructions of a program: wait for ever, or exit with 0.
var (
	forever = []byte{0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7} // mov eax, pause; syscall; jmp
	exit    = []byte{0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05} // mov eax, exit; xor edi, edi; syscall
)

// program returns a static executable of two hundred bytes that writes the
// text to its standard output and goes on with the instructions of end: there
// is nothing smaller to measure what is not the program's own time.
func program(text string, end []byte) []byte {
	const base, header = 0x400000, 64 + 56
	code := slices.Concat(
		[]byte{0xb8, 1, 0, 0, 0}, // mov eax, write
		[]byte{0xbf, 1, 0, 0, 0}, // mov edi, 1
		[]byte{0x48, 0x8d, 0x35}, // lea rsi, [rip + …]
		binary.LittleEndian.AppendUint32(nil, uint32(5+2+len(end))),
		[]byte{0xba}, binary.LittleEndian.AppendUint32(nil, uint32(len(text))), // mov edx, length
		[]byte{0x0f, 0x05}, // syscall
		end, []byte(text),
	)
	size := uint64(header + len(code))
	head := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: base + header, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	segment := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: 4096,
	}
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, head) // fixed sizes and a buffer do not fail
	_ = binary.Write(&b, binary.LittleEndian, segment)
	b.Write(code)
	return b.Bytes()
}
