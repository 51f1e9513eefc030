package seccomp

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16 // six of 8 bytes each, low word first
)

// unlisted is what a call by an architecture that the spec does not list does.
const unlisted = unix.SECCOMP_RET_KILL_PROCESS

// Parts are assembled back to front, as a jump has to know the length of what it
// jumps over. A conditional jump reaches 255 instructions, an unconditional any
// number.

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func ret(result uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: result}
}

func jump(op uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jt: yes, Jf: no}
}

// either runs yes if the comparison of the loaded word with k holds, no otherwise.
// Both must end by returning.
func either(op uint16, k uint32, yes, no []unix.SockFilter) []unix.SockFilter {
	var code []unix.SockFilter
	if len(no) <= 255 {
		code = []unix.SockFilter{jump(op, k, uint8(len(no)), 0)}
	} else {
		code = []unix.SockFilter{
			jump(op, k, 0, 1),
			{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(no))},
		}
	}
	return append(append(code, no...), yes...)
}

// program assembles the whole.
func program(abis []abi, r rules, fallback uint32) []unix.SockFilter {
	kill := []unix.SockFilter{ret(unlisted)}
	if len(r) == 0 && fallback == unix.SECCOMP_RET_ALLOW && len(abis) == 3 {
		return []unix.SockFilter{ret(fallback)}
	}
	search := func(a abi) []unix.SockFilter {
		if !slices.Contains(abis, a) {
			return kill
		}
		return bisect(r.spans(a, fallback))
	}
	x32 := kill
	if slices.Contains(abis, abiX32) {
		x32 = append([]unix.SockFilter{{Code: unix.BPF_ALU | unix.BPF_SUB | unix.BPF_K, K: x32Bit}}, search(abiX32)...)
	}
	native := append([]unix.SockFilter{load(offNumber)}, either(unix.BPF_JGE, x32Bit, x32, search(abi64))...)
	i386 := append([]unix.SockFilter{load(offNumber)}, search(abi386)...)

	code := either(unix.BPF_JEQ, unix.AUDIT_ARCH_I386, i386, kill)
	code = either(unix.BPF_JEQ, unix.AUDIT_ARCH_X86_64, native, code)
	return append([]unix.SockFilter{load(offArch)}, code...)
}

// bisect finds the span of the number that is loaded.
func bisect(list []span) []unix.SockFilter {
	if len(list) == 1 {
		return decide(list[0].rules)
	}
	middle := len(list) / 2
	return either(unix.BPF_JGE, list[middle].first, bisect(list[middle:]), bisect(list[:middle]))
}

// decide tries the rules of one call, the last of which is unconditional.
func decide(list []rule) []unix.SockFilter {
	last := len(list) - 1
	code := []unix.SockFilter{ret(list[last].result)}
	for _, r := range slices.Backward(list[:last]) {
		code = r.or(code)
	}
	return code
}

// or returns the rule's result if all conditions hold, and goes on with next
// otherwise.
func (r rule) or(next []unix.SockFilter) []unix.SockFilter {
	// A failed condition jumps to the end of the rule, where next begins.
	code := []unix.SockFilter{ret(r.result)}
	for _, c := range slices.Backward(r.args) {
		code = append(c.test(len(code)), code...)
	}
	return append(code, next...)
}

// test goes on behind itself if the condition holds and jumps over skip more
// instructions otherwise. A rule has at most 6 conditions of 8 instructions, so
// the jumps are short.
func (c condition) test(skip int) []unix.SockFilter {
	low, high := uint32(c.value), uint32(c.value>>32)
	offset := offArgs + 8*uint32(c.index)
	word := func(offset, mask uint32) []unix.SockFilter {
		code := []unix.SockFilter{load(offset)}
		if mask != ^uint32(0) {
			code = append(code, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask})
		}
		return code
	}
	first, second := word(offset+4, uint32(c.mask>>32)), word(offset, uint32(c.mask))
	fail := uint8(skip)            // from the last instruction
	rest := uint8(len(second)) + 1 // the second word's code and its jump

	switch c.op {
	case specs.OpEqualTo:
		first = append(first, jump(unix.BPF_JEQ, high, 0, rest+fail))
		second = append(second, jump(unix.BPF_JEQ, low, 0, fail))
	case specs.OpNotEqual:
		first = append(first, jump(unix.BPF_JEQ, high, 0, rest))
		second = append(second, jump(unix.BPF_JEQ, low, fail, 0))
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		op := uint16(unix.BPF_JGT)
		if c.op == specs.OpGreaterEqual {
			op = unix.BPF_JGE
		}
		first = append(first,
			jump(unix.BPF_JGT, high, rest+1, 0),
			jump(unix.BPF_JEQ, high, 0, rest+fail))
		second = append(second, jump(op, low, 0, fail))
	case specs.OpLessThan, specs.OpLessEqual:
		op := uint16(unix.BPF_JGE)
		if c.op == specs.OpLessEqual {
			op = unix.BPF_JGT
		}
		first = append(first,
			jump(unix.BPF_JGT, high, rest+1+fail, 0),
			jump(unix.BPF_JEQ, high, 0, rest))
		second = append(second, jump(op, low, fail, 0))
	}
	return append(first, second...)
}
