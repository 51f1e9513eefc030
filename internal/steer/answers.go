package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/seed-efd44b36/kata/internal/bpf"
	"golang.org/x/sys/unix"
)

// Answers loads a classifier for the frames that arrive at an interface and are all
// redirected to a device, for tc's direct action, before that. It leaves to the
// interface's own network namespace what comes by IPv4 from port 53 for a socket in
// there, by UDP or TCP. What asks for it needs the addresses of neighbours: answers of
// ARP go to both. The caller closes the program when it is attached. An error wraps
// errors.ErrUnsupported.
func Answers(device int) (*os.File, error) {
	prog, err := bpf.Load(unix.BPF_PROG_TYPE_SCHED_CLS, 0, answersProgram(device))
	if err != nil {
		return nil, fmt.Errorf("classifier of answers: %w: %w", errors.ErrUnsupported, err)
	}
	return os.NewFile(uintptr(prog), "classifier"), nil
}

// answersProgram is the program. It looks at struct __sk_buff, and at the headers by
// copies of the kernel's.
func answersProgram(device int) []byte {
	const (
		protocol                                        = 16 // offset
		loadBytes, clone, lookupTCP, lookupUDP, release = 26, 13, 84, 85, 86
		load1, load2, load4                             = 0x71, 0x69, 0x61
		moveReg, move, add, and                         = 0xbf, 0xb7, 0x07, 0x57
		jumpNot, jumpIs, jump, call, exit               = 0x55, 0x15, 0x05, 0x85, 0x95
		ethernet                                        = 14       // length of the header
		headers                                         = 24       // of IPv4 and the ports
		at                                              = -headers // on the stack
		fragment, carried, addresses, source, operation = 6, 9, 12, 20, 6
		tuple                                           = 12 // addresses and ports
		ipv4, arpReply, fragmentMask, dns               = 0x45, 2, 0x1fff, 53
		pass, goOn                                      = 0, -1 // verdicts
	)
	var b []byte
	emit := func(op, dst, src byte, off int16, imm int32) {
		b = append(b, op, dst|src<<4)
		b = binary.NativeEndian.AppendUint16(b, uint16(off))
		b = binary.NativeEndian.AppendUint32(b, uint32(imm))
	}
	// later emits a jump whose target is where land is called with it.
	later := func(op, dst byte, imm int32) int {
		emit(op, dst, 0, 0, imm)
		return len(b)/8 - 1
	}
	land := func(from ...int) {
		for _, i := range from {
			binary.NativeEndian.PutUint16(b[8*i+2:], uint16(len(b)/8-i-1))
		}
	}
	// order is a number of the network's as this machine reads it.
	order := func(n uint16) int32 {
		return int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n)))
	}
	// fetch copies n bytes of the frame to the stack.
	fetch := func(offset, n int32) (failed int) {
		emit(moveReg, 1, 6, 0, 0)
		emit(move, 2, 0, 0, offset)
		emit(moveReg, 3, 10, 0, 0)
		emit(add, 3, 0, 0, at)
		emit(move, 4, 0, 0, n)
		emit(call, 0, 0, 0, loadBytes)
		return later(jumpNot, 0, 0)
	}
	var others []int
	no := func(i int) { others = append(others, i) }

	emit(moveReg, 6, 1, 0, 0)
	emit(load4, 2, 6, protocol, 0)
	arp := later(jumpIs, 2, order(unix.ETH_P_ARP))
	no(later(jumpNot, 2, order(unix.ETH_P_IP)))
	no(fetch(ethernet, headers))
	emit(load1, 2, 10, at, 0)
	no(later(jumpNot, 2, ipv4)) // with options
	emit(load2, 2, 10, at+fragment, 0)
	emit(and, 2, 0, 0, order(fragmentMask))
	no(later(jumpNot, 2, 0)) // without ports
	emit(load2, 2, 10, at+source, 0)
	no(later(jumpNot, 2, order(dns)))
	emit(load1, 7, 10, at+carried, 0)
	emit(moveReg, 1, 6, 0, 0)
	emit(moveReg, 2, 10, 0, 0)
	emit(add, 2, 0, 0, at+addresses)
	emit(move, 3, 0, 0, tuple)
	emit(move, 4, 0, 0, -1) // this namespace
	emit(move, 5, 0, 0, 0)
	udp := later(jumpIs, 7, unix.IPPROTO_UDP)
	no(later(jumpNot, 7, unix.IPPROTO_TCP))
	emit(call, 0, 0, 0, lookupTCP)
	found := later(jump, 0, 0)
	land(udp)
	emit(call, 0, 0, 0, lookupUDP)
	land(found)
	no(later(jumpIs, 0, 0))
	emit(moveReg, 1, 0, 0, 0)
	emit(call, 0, 0, 0, release)
	emit(move, 0, 0, 0, pass)
	emit(exit, 0, 0, 0, 0)
	land(arp)
	no(fetch(ethernet+operation, 2))
	emit(load2, 2, 10, at, 0)
	no(later(jumpNot, 2, order(arpReply)))
	emit(moveReg, 1, 6, 0, 0)
	emit(move, 2, 0, 0, int32(device))
	emit(move, 3, 0, 0, 0)
	emit(call, 0, 0, 0, clone)
	emit(move, 0, 0, 0, pass)
	emit(exit, 0, 0, 0, 0)
	land(others...)
	emit(move, 0, 0, 0, goOn)
	emit(exit, 0, 0, 0, 0)
	return b
}
