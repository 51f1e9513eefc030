package cgroup

import (
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// interpret runs a device program as the kernel would.
func interpret(t *testing.T, code []insn, kind, major, minor, access uint32) bool {
	t.Helper()
	ctx := map[int16]uint32{0: access<<16 | kind, 4: major, 8: minor}
	var reg [11]uint32
	for pc := 0; ; pc++ {
		if pc < 0 || pc >= len(code) {
			t.Fatalf("runs out of the program at %d", pc)
		}
		i := code[pc]
		dst := i.regs & 0xf
		jump := false
		switch i.op {
		case opLoadWord:
			reg[dst] = ctx[i.off]
		case opMove:
			reg[dst] = uint32(i.imm)
		case opAnd:
			reg[dst] &= uint32(i.imm)
		case opShift:
			reg[dst] >>= uint32(i.imm)
		case opNotEqual:
			jump = reg[dst] != uint32(i.imm)
		case opAnySet:
			jump = reg[dst]&uint32(i.imm) != 0
		case 0x05:
			jump = true
		case opExit:
			return reg[0] == 1
		default:
			t.Fatalf("unknown instruction %#x", i.op)
		}
		if jump {
			pc += int(i.off)
		}
	}
}

func TestDeviceRules(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	denyAll := specs.LinuxDeviceCgroup{Allow: false, Access: "rwm"}
	allowAll := specs.LinuxDeviceCgroup{Allow: true, Type: "a", Access: "rwm"}
	type access struct {
		kind, major, minor, access uint32
		want                       bool
	}
	tests := []struct {
		name  string
		rules []specs.LinuxDeviceCgroup
		all   bool
		tries []access
	}{
		{"none", nil, false, []access{
			{typeChar, 1, 3, accessAll, true},
			{typeChar, 136, 99, accessRead | accessWrite, true},
			{typeChar, 1, 1, accessRead, false},
			{typeBlock, 254, 0, accessRead, false},
			{typeBlock, 254, 0, accessMknod, true},
			{typeBlock, 254, 0, accessMknod | accessRead, false},
			{typeBlock, 1, 3, accessRead, false},
		}},
		{"engine", []specs.LinuxDeviceCgroup{denyAll, {Allow: true, Type: "c", Major: n(10), Minor: n(229), Access: "rw"}}, false, []access{
			{typeChar, 10, 229, accessRead, true},
			{typeChar, 10, 229, accessRead | accessWrite, true},
			{typeChar, 10, 229, accessAll, true},
			{typeChar, 10, 200, accessRead, false},
			{typeChar, 1, 3, accessAll, true},
		}},
		{"privileged", []specs.LinuxDeviceCgroup{denyAll, allowAll}, true, []access{
			{typeBlock, 8, 0, accessAll, true},
		}},
		{"all but one", []specs.LinuxDeviceCgroup{allowAll, {Type: "b", Major: n(8), Access: "w"}}, false, []access{
			{typeBlock, 8, 5, accessRead, true},
			{typeBlock, 8, 5, accessRead | accessWrite, false},
			{typeBlock, 9, 5, accessWrite, true},
		}},
		{"rights add up", []specs.LinuxDeviceCgroup{
			denyAll,
			{Allow: true, Type: "c", Major: n(10), Access: "r"},
			{Allow: true, Type: "c", Minor: n(7), Access: "w"},
		}, false, []access{
			{typeChar, 10, 7, accessRead | accessWrite, true},
			{typeChar, 10, 8, accessRead | accessWrite, false},
			{typeChar, 11, 7, accessWrite, true},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rules, err := deviceRules(tt.rules)
			if err != nil {
				t.Fatal(err)
			}
			if got := allowsAll(rules); got != tt.all {
				t.Errorf("allows all: got %v, want %v", got, tt.all)
			}
			code := deviceProgram(rules)
			for _, a := range tt.tries {
				if got := interpret(t, code, a.kind, a.major, a.minor, a.access); got != a.want {
					t.Errorf("type %d device %d:%d access %d: got %v, want %v", a.kind, a.major, a.minor, a.access, got, a.want)
				}
			}
		})
	}
}

func TestDeviceRulesRefused(t *testing.T) {
	n := int64(1)
	big := int64(1) << 40
	for _, r := range []specs.LinuxDeviceCgroup{
		{Type: "x"},
		{Type: "a", Major: &n},
		{Type: "c", Access: "rx"},
		{Type: "c", Major: &big},
	} {
		if _, err := deviceRules([]specs.LinuxDeviceCgroup{r}); err == nil {
			t.Errorf("%+v: got no error", r)
		}
	}
}

// TestUsualRules has rules as engines write them, which are to be among those that
// are prepared for.
func TestUsualRules(t *testing.T) {
	n := func(n int64) *int64 { return &n }
	docker := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, h := range harmless {
		d := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Access: "rwm"}
		if h.kind == typeBlock {
			d.Type = "b"
		}
		if h.access == accessMknod {
			d.Access = "m"
		}
		if h.major >= 0 {
			d.Major = n(int64(h.major))
		}
		if h.minor >= 0 {
			d.Minor = n(int64(h.minor))
		}
		docker = append(docker, d)
	}
	docker = append(docker, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: n(5), Minor: n(1), Access: "rwm"})
	for _, tt := range []struct {
		name  string
		rules []specs.LinuxDeviceCgroup
		want  []deviceRule
	}{
		{"none", nil, []deviceRule{nothing}},
		{"containerd", docker[:1], []deviceRule{nothing}},
		{"runc's", docker[:len(docker)-1], []deviceRule{nothing}},
		{"Docker's", docker, []deviceRule{nothing, console}},
	} {
		got, err := deviceRules(tt.rules)
		if err != nil {
			t.Fatal(err)
		}
		if want := append(tt.want, harmless[:]...); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, want)
		}
	}
}
