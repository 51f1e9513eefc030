package cgroup

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Access to devices is decided by an eBPF program that the kernel runs at every
// mknod and open. Ours goes through the rules from the last to the first. Each
// kind of access (mknod, read, write) is decided by the first rule that it meets;
// the whole is allowed when nothing is left undecided, refused as soon as one kind
// is.

// Kinds of access and devices, as the kernel has them.
const (
	accessMknod = 1
	accessRead  = 2
	accessWrite = 4
	accessAll   = accessMknod | accessRead | accessWrite

	typeBlock = 1
	typeChar  = 2
)

// deviceRule is a rule of the spec in numbers; -1 stands for any.
type deviceRule struct {
	allow        bool
	kind         int32
	major, minor int32
	access       int32
}

// harmless are the devices that the spec lets every container have, and the making
// of any node, as a node by itself opens nothing.
var harmless = [...]deviceRule{
	{true, typeChar, -1, -1, accessMknod},
	{true, typeBlock, -1, -1, accessMknod},
	{true, typeChar, 1, 3, accessAll},    // null
	{true, typeChar, 1, 5, accessAll},    // zero
	{true, typeChar, 1, 7, accessAll},    // full
	{true, typeChar, 1, 8, accessAll},    // random
	{true, typeChar, 1, 9, accessAll},    // urandom
	{true, typeChar, 5, 0, accessAll},    // tty
	{true, typeChar, 5, 2, accessAll},    // ptmx
	{true, typeChar, 136, -1, accessAll}, // pts
}

// Rules of engines: at first nothing is allowed, and Docker's go on with a container's
// own console.
var (
	nothing = deviceRule{false, -1, -1, -1, accessAll}
	console = deviceRule{true, typeChar, 5, 1, accessAll}
)

// Registers of eBPF.
const (
	r0 = iota
	r1
	r2
	r3
	r4
	r5
)

// insn is an instruction of eBPF. The registers share a byte, the destination in
// its low half.
type insn struct {
	op   uint8
	regs uint8
	off  int16
	imm  int32
}

// Operation codes. The jumps with a constant are of 32 bits.
const (
	opLoadWord = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	opMove     = 0x07 /* ALU64 */ | 0xb0 | unix.BPF_K
	opAnd      = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	opShift    = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	opNotEqual = 0x06 /* JMP32 */ | 0x50 | unix.BPF_K
	opAnySet   = 0x06 /* JMP32 */ | unix.BPF_JSET | unix.BPF_K
	opExit     = unix.BPF_JMP | 0x90
)

// deviceRules are the rules in force, of which the last that is about a device and
// a kind of access decides. The first is about everything.
func deviceRules(list []specs.LinuxDeviceCgroup) ([]deviceRule, error) {
	rules := []deviceRule{nothing}
	for i, d := range list {
		r, err := parseRule(d)
		if err != nil {
			return nil, fmt.Errorf("linux.resources.devices[%d]: %w", i, err)
		}
		if r.kind < 0 && r.access == accessAll {
			rules = rules[:0] // nothing before it matters
		}
		rules = append(rules, r)
	}
	// At the end, since the spec promises these whatever the rules say.
	rules = append(rules, harmless[:]...)
	// A rule that comes again has nothing left to decide the first time. Engines list
	// the harmless ones, too.
	once := rules[:0]
	for i, r := range rules {
		if !slices.Contains(rules[i+1:], r) {
			once = append(once, r)
		}
	}
	return once, nil
}

// allowsAll reports that there is nothing to refuse.
func allowsAll(rules []deviceRule) bool {
	return !slices.ContainsFunc(rules, func(r deviceRule) bool { return !r.allow })
}

// deviceProgram compiles the rules.
func deviceProgram(rules []deviceRule) []insn {
	// struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor.
	code := []insn{
		{op: opLoadWord, regs: r1<<4 | r2},
		{op: opLoadWord, regs: r1<<4 | r3},
		{op: opLoadWord, regs: r1<<4 | r4, off: 4},
		{op: opLoadWord, regs: r1<<4 | r5, off: 8},
		{op: opAnd, regs: r2, imm: 0xffff},
		{op: opShift, regs: r3, imm: 16},
	}
	for _, r := range slices.Backward(rules) {
		code = append(code, r.code()...)
	}
	// What no rule has decided cannot be: the first is about everything.
	return append(code, insn{op: opMove, regs: r0}, insn{op: opExit})
}

// code returns the rule's part: if it is about the device, it ends the program or
// takes from r3 what it allows.
func (r deviceRule) code() []insn {
	var then []insn
	if r.allow {
		then = []insn{
			{op: opAnd, regs: r3, imm: accessAll &^ r.access},
			{op: opNotEqual, regs: r3, imm: 0, off: 2},
			{op: opMove, regs: r0, imm: 1},
			{op: opExit},
		}
	} else {
		then = []insn{
			{op: opAnySet, regs: r3, imm: r.access, off: 1},
			{op: 0x05 /* JMP always */, off: 2},
			{op: opMove, regs: r0, imm: 0},
			{op: opExit},
		}
	}
	code := then
	prepend := func(reg uint8, want int32) {
		if want >= 0 {
			code = append([]insn{{op: opNotEqual, regs: reg, imm: want, off: int16(len(code))}}, code...)
		}
	}
	prepend(r5, r.minor)
	prepend(r4, r.major)
	prepend(r2, r.kind)
	return code
}

func parseRule(d specs.LinuxDeviceCgroup) (deviceRule, error) {
	r := deviceRule{allow: d.Allow, kind: -1, major: -1, minor: -1}
	switch d.Type {
	case "", "a":
		if d.Major != nil && *d.Major >= 0 || d.Minor != nil && *d.Minor >= 0 {
			return r, errors.New("a device number without a type")
		}
	case "c":
		r.kind = typeChar
	case "b":
		r.kind = typeBlock
	default:
		return r, fmt.Errorf("unknown type %q", d.Type)
	}
	number := func(n *int64) (int32, error) {
		if n == nil || *n < 0 {
			return -1, nil
		}
		if *n >= 1<<20 {
			return -1, fmt.Errorf("no such device number: %d", *n)
		}
		return int32(*n), nil
	}
	var err error
	if r.major, err = number(d.Major); err != nil {
		return r, err
	}
	if r.minor, err = number(d.Minor); err != nil {
		return r, err
	}
	access := d.Access
	if access == "" {
		access = "rwm"
	}
	for _, c := range access {
		i := strings.IndexRune("mrw", c)
		if i < 0 {
			return r, fmt.Errorf("unknown access %q", d.Access)
		}
		r.access |= 1 << i
	}
	return r, nil
}
