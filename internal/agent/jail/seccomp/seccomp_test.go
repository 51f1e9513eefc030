package seccomp

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// call is a system call as a program sees it.
type call struct {
	arch   uint32
	number uint32
	args   [6]uint64
}

// interpret runs a program as the kernel would. It returns false if the program is
// not valid.
func interpret(code []unix.SockFilter, c call) (result uint32, ok bool) {
	word := func(offset uint32) uint32 {
		switch {
		case offset == offNumber:
			return c.number
		case offset == offArch:
			return c.arch
		case offset >= offArgs && offset < offArgs+48 && offset%4 == 0:
			i := offset - offArgs
			return uint32(c.args[i/8] >> (8 * (i % 8)))
		default:
			return 0xdeadbeef
		}
	}
	var a uint32
	for pc := 0; pc < len(code); pc++ {
		i := code[pc]
		jump := func(yes bool) {
			if yes {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		}
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = word(i.K)
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= i.K
		case unix.BPF_ALU | unix.BPF_SUB | unix.BPF_K:
			a -= i.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(i.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(a == i.K)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(a >= i.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(a > i.K)
		case unix.BPF_RET | unix.BPF_K:
			return i.K, true
		default:
			return 0, false
		}
	}
	return 0, false
}

// number returns the number of a call.
func number(a abi, name string) (uint32, bool) {
	i, ok := slices.BinarySearchFunc(table[:], name, func(e entry, n string) int { return cmp.Compare(e.name, n) })
	if !ok || table[i].numbers[a] < 0 {
		return 0, false
	}
	n := uint32(table[i].numbers[a])
	if a == abiX32 {
		n |= x32Bit
	}
	return n, true
}

func archOf(a abi) uint32 {
	if a == abi386 {
		return unix.AUDIT_ARCH_I386
	}
	return unix.AUDIT_ARCH_X86_64
}

func compile(t *testing.T, s *specs.LinuxSeccomp) []unix.SockFilter {
	t.Helper()
	f, err := Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	return f.Program
}

func check(t *testing.T, code []unix.SockFilter, a abi, name string, want uint32, args ...uint64) {
	t.Helper()
	n, ok := number(a, name)
	if !ok {
		t.Fatalf("no number for %s", name)
	}
	c := call{arch: archOf(a), number: n}
	copy(c.args[:], args)
	if got, ok := interpret(code, c); !ok || got != want {
		t.Errorf("abi %d: %s%v: got %#x (valid: %v), want %#x", a, name, args, got, ok, want)
	}
}

const (
	allow = unix.SECCOMP_RET_ALLOW
	eperm = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
)

func TestNumbers(t *testing.T) {
	for name, want := range map[string][3]uint32{
		"read": {0, 3, x32Bit}, "execve": {59, 11, x32Bit | 520}, "socket": {41, 359, x32Bit | 41}, "clone3": {435, 435, x32Bit | 435},
	} {
		for a, n := range want {
			if got, ok := number(abi(a), name); !ok || got != n {
				t.Errorf("%s, abi %d: got %d, want %d", name, a, got, n)
			}
		}
	}
	if !slices.IsSortedFunc(table[:], func(a, b entry) int { return cmp.Compare(a.name, b.name) }) {
		t.Error("the table is not sorted")
	}
}

// TestDockerProfile holds the real thing against what its author wants.
func TestDockerProfile(t *testing.T) {
	profile, err := seccomp.GetDefaultProfile(&specs.Spec{
		Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	code := compile(t, profile)
	// Those of libseccomp are about as many for each of the three ABIs.
	if len(code) > 900 {
		t.Errorf("got %d instructions, want at most 900", len(code))
	}
	for _, a := range []abi{abi64, abi386, abiX32} {
		check(t, code, a, "read", allow)
		check(t, code, a, "execve", allow)
		check(t, code, a, "mount", eperm)
		check(t, code, a, "bpf", eperm)
		check(t, code, a, "clone", allow, uint64(unix.SIGCHLD))
		check(t, code, a, "clone", eperm, unix.CLONE_NEWUSER)
		check(t, code, a, "clone3", unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS))
		check(t, code, a, "personality", allow, 8)
		check(t, code, a, "personality", eperm, 1)
		check(t, code, a, "socket", allow, unix.AF_INET)
		check(t, code, a, "socket", eperm, unix.AF_VSOCK)
	}
	for _, c := range []struct {
		call
		want uint32
	}{
		{call{arch: unix.AUDIT_ARCH_AARCH64, number: 0}, unix.SECCOMP_RET_KILL_PROCESS},
		{call{arch: unix.AUDIT_ARCH_X86_64, number: 900}, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{call{arch: unix.AUDIT_ARCH_I386, number: 900}, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
	} {
		if got, _ := interpret(code, c.call); got != c.want {
			t.Errorf("%+v: got %#x, want %#x", c.call, got, c.want)
		}
	}
}

func TestComparisons(t *testing.T) {
	values := []uint64{0, 1, 5, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 5, 5 << 32, 1<<63 + 5, ^uint64(0)}
	holds := map[specs.LinuxSeccompOperator]func(v, a, b uint64) bool{
		specs.OpNotEqual:     func(v, a, _ uint64) bool { return v != a },
		specs.OpLessThan:     func(v, a, _ uint64) bool { return v < a },
		specs.OpLessEqual:    func(v, a, _ uint64) bool { return v <= a },
		specs.OpEqualTo:      func(v, a, _ uint64) bool { return v == a },
		specs.OpGreaterEqual: func(v, a, _ uint64) bool { return v >= a },
		specs.OpGreaterThan:  func(v, a, _ uint64) bool { return v > a },
		specs.OpMaskedEqual:  func(v, a, b uint64) bool { return v&a == b },
	}
	for op, f := range holds {
		for _, a := range values {
			for _, b := range values {
				code := compile(t, &specs.LinuxSeccomp{
					DefaultAction: specs.ActErrno,
					Syscalls: []specs.LinuxSyscall{{
						Names: []string{"fcntl"}, Action: specs.ActAllow,
						Args: []specs.LinuxSeccompArg{{Index: 2, Value: a, ValueTwo: b, Op: op}, {Index: 5, Value: 3, Op: specs.OpLessThan}},
					}},
				})
				for _, v := range values {
					want := eperm
					if f(v, a, b) {
						want = allow
					}
					check(t, code, abi64, "fcntl", want, 0, 0, v)
					check(t, code, abi64, "fcntl", eperm, 0, 0, v, 0, 0, 3)
				}
				if op != specs.OpMaskedEqual {
					break
				}
			}
		}
	}
}

func TestRules(t *testing.T) {
	errno := uint(99)
	code := compile(t, &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchARM},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"mkdir", "no_such_call"}, Action: specs.ActErrno, ErrnoRet: &errno},
			{Names: []string{"chmod"}, Action: specs.ActKillProcess},
			{Names: []string{"chown"}, Action: specs.ActKill},
			{Names: []string{"chroot"}, Action: specs.ActTrap},
			{Names: []string{"chdir"}, Action: specs.ActLog},
			{Names: []string{"link"}, Action: specs.ActTrace, ErrnoRet: &errno},
			{Names: []string{"accept4"}, Action: specs.ActErrno},
			{Names: []string{"shmget"}, Action: specs.ActErrno},
			// Two about one argument: either is enough.
			{Names: []string{"kill"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{
				{Index: 1, Value: 9, Op: specs.OpEqualTo}, {Index: 1, Value: 15, Op: specs.OpEqualTo},
			}},
			// The first that matches.
			{Names: []string{"dup2"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 9, Op: specs.OpGreaterThan}}},
			{Names: []string{"dup2"}, Action: specs.ActTrap, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 5, Op: specs.OpGreaterThan}}},
		},
	})
	check(t, code, abi64, "read", allow)
	check(t, code, abi64, "mkdir", unix.SECCOMP_RET_ERRNO|99)
	check(t, code, abi386, "mkdir", unix.SECCOMP_RET_ERRNO|99)
	check(t, code, abiX32, "mkdir", unix.SECCOMP_RET_KILL_PROCESS) // not listed
	check(t, code, abi64, "chmod", unix.SECCOMP_RET_KILL_PROCESS)
	check(t, code, abi64, "chown", unix.SECCOMP_RET_KILL_THREAD)
	check(t, code, abi64, "chroot", unix.SECCOMP_RET_TRAP)
	check(t, code, abi64, "chdir", unix.SECCOMP_RET_LOG)
	check(t, code, abi64, "link", unix.SECCOMP_RET_TRACE|99)
	check(t, code, abi64, "kill", eperm, 1, 9)
	check(t, code, abi64, "kill", eperm, 1, 15)
	check(t, code, abi64, "kill", allow, 1, 10)
	check(t, code, abi64, "dup2", eperm, 10)
	check(t, code, abi64, "dup2", unix.SECCOMP_RET_TRAP, 6)
	check(t, code, abi64, "dup2", allow, 5)
	// By the old door, which programs for i386 have.
	check(t, code, abi386, "socketcall", eperm, 18)
	check(t, code, abi386, "socketcall", allow, 1)
	check(t, code, abi386, "ipc", eperm, 23)
	check(t, code, abi386, "ipc", allow, 1)
	// Nothing is made unknown where all is allowed.
	if got, _ := interpret(code, call{arch: unix.AUDIT_ARCH_X86_64, number: 999}); got != allow {
		t.Errorf("new call: got %#x", got)
	}
}

func TestRefused(t *testing.T) {
	errno, huge := uint(1), uint(1<<16)
	many := specs.LinuxSyscall{Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpMaskedEqual, Value: 1 << 40}}}
	for _, e := range table {
		many.Names = append(many.Names, e.name, e.name)
	}
	rule := func(s specs.LinuxSyscall) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{s}}
	}
	read := []string{"read"}
	tests := []struct {
		spec *specs.LinuxSeccomp
		want string
	}{
		{&specs.LinuxSeccomp{}, "defaultAction"},
		{&specs.LinuxSeccomp{DefaultAction: "X"}, "defaultAction"},
		{&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, DefaultErrnoRet: &errno}, "defaultAction"},
		{&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &huge}, "out of range"},
		{&specs.LinuxSeccomp{DefaultAction: specs.ActNotify}, "defaultAction"},
		{&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/x"}, "listenerPath"},
		{&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"X"}}, "flags"},
		{&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"x86"}}, "architectures"},
		{rule(specs.LinuxSyscall{Names: read, Action: specs.ActNotify}), "syscalls[0]"},
		{rule(specs.LinuxSyscall{Names: read, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}), "syscalls[0]"},
		{rule(specs.LinuxSyscall{Names: read, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Op: "X"}}}), "syscalls[0]"},
		{rule(specs.LinuxSyscall{Names: []string{""}, Action: specs.ActAllow}), "syscalls[0]"},
		{rule(many), "instructions"},
	}
	for _, tt := range tests {
		if _, err := Compile(tt.spec); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want an error about %s", err, tt.want)
		}
	}
}

// FuzzCompile makes sure that every program that comes out ends, and says for each
// call what a plain walk over the rules says.
func FuzzCompile(f *testing.F) {
	f.Add(`{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],"syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ALLOW"}]}`, uint32(1), uint64(5))
	f.Add(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["kill"],"action":"SCMP_ACT_KILL","args":[{"index":1,"value":9,"op":"SCMP_CMP_EQ"}]}]}`, uint32(62), uint64(9))
	f.Add(`{"defaultAction":"SCMP_ACT_KILL","syscalls":[{"names":["fcntl"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":9,"valueTwo":1,"op":"SCMP_CMP_MASKED_EQ"},{"index":2,"value":4294967296,"op":"SCMP_CMP_GE"}]}]}`, uint32(72), uint64(1<<33))
	f.Fuzz(func(t *testing.T, text string, nr uint32, arg uint64) {
		s := new(specs.LinuxSeccomp)
		if json.Unmarshal([]byte(text), s) != nil {
			return
		}
		filter, err := Compile(s)
		if err != nil {
			return
		}
		c := call{arch: unix.AUDIT_ARCH_X86_64, number: nr % 512}
		for i := range c.args {
			c.args[i] = arg
		}
		got, ok := interpret(filter.Program, c)
		if !ok {
			t.Fatal("the program does not end")
		}
		if want, known := walk(s, c); known && got != want {
			t.Errorf("call %d with %d: got %#x, want %#x", c.number, arg, got, want)
		}
		c.arch = unix.AUDIT_ARCH_I386
		if _, ok := interpret(filter.Program, c); !ok {
			t.Fatal("the program does not end")
		}
	})
}

// walk decides by going over the rules. Where the newest named call is older it
// does not know.
func walk(s *specs.LinuxSeccomp, c call) (result uint32, known bool) {
	fallback, _ := action(s.DefaultAction, s.DefaultErrnoRet)
	all, _ := parse(s.Syscalls, fallback)
	newest := uint32(0)
	var mine []rule
	for _, e := range table {
		list, named := all[e.name]
		if n := e.numbers[abi64]; named && n >= 0 {
			newest = max(newest, uint32(n))
			if uint32(n) == c.number {
				mine = list
			}
		}
	}
	if c.number > newest {
		return 0, false
	}
	for _, r := range mine {
		if len(r.args) == 0 {
			return r.result, true
		}
	}
	for _, r := range mine {
		if !slices.ContainsFunc(r.args, func(a condition) bool { return !a.holds(c.args[a.index]) }) {
			return r.result, true
		}
	}
	return fallback, true
}

func (c condition) holds(v uint64) bool {
	v &= c.mask
	switch c.op {
	case specs.OpNotEqual:
		return v != c.value
	case specs.OpLessThan:
		return v < c.value
	case specs.OpLessEqual:
		return v <= c.value
	case specs.OpEqualTo:
		return v == c.value
	case specs.OpGreaterEqual:
		return v >= c.value
	case specs.OpGreaterThan:
		return v > c.value
	default:
		return false
	}
}
