// Package seccomp turns the system call rules of an OCI spec into a classic BPF
// program for seccomp(2).
//
// The program looks at the architecture, searches the interval of numbers that a
// call is in by bisection, and only then at arguments. For most calls the kernel
// need not even run it: it finds out at load time which numbers are always
// allowed.
//
// Where the spec leaves things open it does what runc does with libseccomp, as
// that is what profiles are written for:
//
//   - names that no listed architecture has are passed over;
//   - a rule with the default action says nothing;
//   - conditions of a rule are joined by "and", but by "or" if two of them are
//     about the same argument;
//   - calls newer than any that the profile names answer ENOSYS, not the default
//     error, so that C libraries fall back to older ones;
//   - a call by an architecture that is not listed kills the process.
package seccomp

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

//go:generate go run gen.go

// maxLen is the kernel's limit of a program, in instructions.
const maxLen = 4096

// Filter is a program and the flags to load it with (SECCOMP_FILTER_FLAG_*).
type Filter struct {
	Program []unix.SockFilter
	Flags   uint
}

// entry is a system call and its numbers, indexed by abi.
type entry struct {
	name    string
	numbers [3]int16
}

// An abi is a way to call the kernel.
type abi int

const (
	abi64 abi = iota
	abi386
	abiX32
)

// x32Bit marks the numbers of x32, which are otherwise called as those of x86-64.
const x32Bit = 0x40000000

// Compile translates the rules. The error names the field that cannot be
// enforced.
func Compile(s *specs.LinuxSeccomp) (Filter, error) {
	var f Filter
	if s.ListenerPath != "" || s.ListenerMetadata != "" {
		return f, errors.New("listenerPath: not supported")
	}
	for _, flag := range s.Flags {
		switch flag {
		case specs.LinuxSeccompFlagLog:
			f.Flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			f.Flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC":
			// There is one thread at the time when the program is loaded.
		default:
			return f, fmt.Errorf("flags: %q is not supported", flag)
		}
	}
	fallback, err := action(s.DefaultAction, s.DefaultErrnoRet)
	if err != nil {
		return f, fmt.Errorf("defaultAction: %w", err)
	}
	abis, err := architectures(s.Architectures)
	if err != nil {
		return f, fmt.Errorf("architectures: %w", err)
	}
	rules, err := parse(s.Syscalls, fallback)
	if err != nil {
		return f, err
	}
	f.Program = program(abis, rules, fallback)
	if len(f.Program) > maxLen {
		return f, fmt.Errorf("syscalls: the rules make a program of %d instructions, the kernel takes %d", len(f.Program), maxLen)
	}
	return f, nil
}

// architectures returns which ABIs are filtered by rules. The native one always is.
func architectures(list []specs.Arch) ([]abi, error) {
	abis := []abi{abi64}
	for _, a := range list {
		switch a {
		case specs.ArchX86_64:
		case specs.ArchX86:
			abis = append(abis, abi386)
		case specs.ArchX32:
			abis = append(abis, abiX32)
		default:
			if !strings.HasPrefix(string(a), "SCMP_ARCH_") {
				return nil, fmt.Errorf("unknown architecture %q", a)
			}
			// Those of other machines, which cannot be called here.
		}
	}
	slices.Sort(abis)
	return slices.Compact(abis), nil
}

// action returns what the program has to return.
func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint(unix.EPERM)
	if errno != nil {
		if a != specs.ActErrno && a != specs.ActTrace {
			return 0, fmt.Errorf("action %q takes no errno", a)
		}
		data = *errno
	}
	if data > unix.SECCOMP_RET_DATA {
		return 0, fmt.Errorf("errno %d is out of range", data)
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | uint32(data), nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | uint32(data), nil
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	default:
		return 0, fmt.Errorf("action %q is not supported", a)
	}
}

// rule is what the program returns for a call whose arguments match all of the
// conditions.
type rule struct {
	result uint32
	args   []condition
}

// condition is a comparison with the argument of the given index, after masking.
type condition struct {
	index uint
	op    specs.LinuxSeccompOperator // never OpMaskedEqual
	mask  uint64
	value uint64
}

// rules are those of each call, by name, in the order of the spec.
type rules map[string][]rule

func parse(list []specs.LinuxSyscall, fallback uint32) (rules, error) {
	all := make(rules)
	for i, sc := range list {
		result, err := action(sc.Action, sc.ErrnoRet)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		args, err := conditions(sc.Args)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d]: %w", i, err)
		}
		for _, name := range sc.Names {
			if name == "" {
				return nil, fmt.Errorf("syscalls[%d]: empty name", i)
			}
			if _, ok := all[name]; !ok {
				all[name] = nil // so that the profile is seen to know it
			}
			if result == fallback {
				continue
			}
			for _, a := range args {
				all[name] = append(all[name], rule{result, a})
			}
		}
	}
	return all, nil
}

// conditions returns alternatives, each of which is a list of conditions that must
// all hold.
func conditions(args []specs.LinuxSeccompArg) ([][]condition, error) {
	var list []condition
	seen := make(map[uint]bool)
	repeated := false
	for _, a := range args {
		if a.Index > 5 {
			return nil, fmt.Errorf("argument %d: a system call has 6", a.Index)
		}
		c := condition{index: a.Index, op: a.Op, mask: ^uint64(0), value: a.Value}
		switch a.Op {
		case specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan:
		case specs.OpMaskedEqual:
			c.op, c.mask, c.value = specs.OpEqualTo, a.Value, a.ValueTwo
		default:
			return nil, fmt.Errorf("argument %d: unknown comparison %q", a.Index, a.Op)
		}
		repeated = repeated || seen[a.Index]
		seen[a.Index] = true
		list = append(list, c)
	}
	if !repeated {
		return [][]condition{list}, nil
	}
	var each [][]condition
	for _, c := range list {
		each = append(each, []condition{c})
	}
	return each, nil
}

// span is the numbers from first up to the next span's first.
type span struct {
	first uint32
	rules []rule // ends with an unconditional one
}

// spans covers all numbers below x32Bit of one ABI, in ascending order.
func (r rules) spans(a abi, fallback uint32) []span {
	byNumber := make(map[uint32][]rule)
	newest := int16(-1)
	for i := range table {
		e := &table[i]
		list, named := r[e.name]
		n := e.numbers[a]
		if !named || n < 0 {
			continue
		}
		newest = max(newest, n)
		if len(list) > 0 {
			byNumber[uint32(n)] = append(byNumber[uint32(n)], list...)
		}
	}
	if a == abi386 {
		r.multiplexed(byNumber)
	}
	numbers := make([]uint32, 0, len(byNumber))
	for n := range byNumber {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)

	rest := []rule{{result: fallback}}
	list := []span{{0, rest}}
	for _, n := range numbers {
		list = append(list, span{n, effective(byNumber[n], fallback)}, span{n + 1, rest})
	}
	if newest >= 0 && unknownIsENOSYS(fallback) {
		// x32 has the calls from 512 on apart; both parts are old.
		list = append(list, span{uint32(newest) + 1, []rule{{result: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}}})
	}
	return join(list)
}

// join makes one span of neighbours that do the same, and drops empty ones: of
// several with the same beginning the last counts.
func join(list []span) []span {
	joined := list[:0]
	for i, s := range list {
		if i+1 < len(list) && list[i+1].first == s.first {
			continue
		}
		if n := len(joined); n > 0 {
			before := joined[n-1].rules
			if len(before) == 1 && len(s.rules) == 1 && before[0].result == s.rules[0].result {
				continue
			}
		}
		joined = append(joined, s)
	}
	return joined
}

// unknownIsENOSYS tells whether calls that the profile's author cannot have known
// are to look as if the kernel did not have them.
func unknownIsENOSYS(fallback uint32) bool {
	switch fallback & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_TRACE:
		return false
	default:
		return true
	}
}

// effective cuts off what comes after the first unconditional rule, and ends with
// one. An unconditional rule goes before all conditional ones, as in libseccomp.
func effective(list []rule, fallback uint32) []rule {
	for _, r := range list {
		if len(r.args) == 0 {
			return []rule{r}
		}
	}
	return append(slices.Clone(list), rule{result: fallback})
}

// multiplexed adds rules for socketcall and ipc, by which programs for i386 can
// make calls that have numbers of their own as well. What depends on arguments
// cannot be told there: they are in memory.
func (r rules) multiplexed(byNumber map[uint32][]rule) {
	const socketcall, ipc = 102, 117
	add := func(number uint32, calls []string) {
		for i, name := range calls {
			list := r[name]
			if name == "" || len(list) == 0 || len(list[0].args) > 0 {
				continue
			}
			byNumber[number] = append(byNumber[number], rule{
				result: list[0].result,
				args:   []condition{{op: specs.OpEqualTo, mask: ^uint64(0), value: uint64(i)}},
			})
		}
	}
	add(socketcall, []string{
		"", "socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "send", "recv",
		"sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg", "sendmmsg",
	})
	add(ipc, []string{
		"", "semop", "semget", "semctl", "semtimedop", "", "", "", "", "", "",
		"msgsnd", "msgrcv", "msgget", "msgctl", "", "", "", "", "", "",
		"shmat", "shmdt", "shmget", "shmctl",
	})
}
