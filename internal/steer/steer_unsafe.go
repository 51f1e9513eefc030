// Package steer gives sockets what is sent to addresses that they are not bound to, on
// loopback interfaces and elsewhere, by a program in the kernel (sk_lookup, Linux 5.9).
// Whoever binds the same port finds it free. The host uses it to forward ports, the
// agent to answer for the name server of an engine.
//
// And it leaves answers to whom they are for, where all else is redirected to a guest.
package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/seed-efd44b36/kata/internal/bpf"
	"golang.org/x/sys/unix"
)

// The attributes of bpf(2) that only we use. They are larger in newer kernels, which
// take the missing part for zero. The pointers in them are integers for Go, so what
// they point to is kept alive until the call is over.

type mapAttr struct {
	mapType, keySize, valueSize, maxEntries, flags uint32
}

type elementAttr struct {
	mapFD, _   uint32
	key, value uint64
	flags      uint64
}

type linkAttr struct {
	progFD, targetFD, attachType, flags uint32
}

// maxRules keeps the program's jumps short.
const maxRules = 64

// Rule says what a socket is given.
type Rule struct {
	// Protocol is unix.IPPROTO_TCP or unix.IPPROTO_UDP.
	Protocol int
	Address  netip.Addr
	Port     uint16 // 0: every port
	// Socket is bound, and listens if it is one of TCP.
	Socket syscall.Conn
}

// Steering is the program as it is attached; it ends with the descriptors.
type Steering struct{ fds []int }

// Close ends it. The sockets are the caller's.
func (s *Steering) Close() error {
	if s == nil {
		return nil
	}
	var errs []error
	for _, fd := range s.fds {
		errs = append(errs, unix.Close(fd))
	}
	s.fds = nil
	return errors.Join(errs...)
}

// Attach begins to steer in the network namespace. The first rule that fits counts.
// An error wraps errors.ErrUnsupported.
func Attach(ns *os.File, rules []Rule) (_ *Steering, err error) {
	s := &Steering{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("the kernel does not give ports away (sk_lookup): %w: %w", errors.ErrUnsupported, err), s.Close())
		}
	}()
	if n := len(rules); n == 0 || n > maxRules {
		return nil, fmt.Errorf("%d rules, want 1 to %d", n, maxRules)
	}
	const socketSize, keySize = 8, 4
	create := mapAttr{mapType: unix.BPF_MAP_TYPE_SOCKMAP, keySize: keySize, valueSize: socketSize, maxEntries: uint32(len(rules))}
	sockets, err := bpf.Call(unix.BPF_MAP_CREATE, unsafe.Pointer(&create), unsafe.Sizeof(create))
	if err != nil {
		return nil, fmt.Errorf("make a map of sockets: %w", err)
	}
	s.fds = append(s.fds, sockets)
	for i, r := range rules {
		if err := put(sockets, uint32(i), r.Socket); err != nil {
			return nil, err
		}
	}
	prog, err := bpf.Load(unix.BPF_PROG_TYPE_SK_LOOKUP, unix.BPF_SK_LOOKUP, lookupProgram(sockets, rules))
	if err != nil {
		return nil, fmt.Errorf("load the program: %w", err)
	}
	s.fds = append(s.fds, prog)
	attach := linkAttr{progFD: uint32(prog), targetFD: uint32(ns.Fd()), attachType: unix.BPF_SK_LOOKUP}
	attached, err := bpf.Call(unix.BPF_LINK_CREATE, unsafe.Pointer(&attach), unsafe.Sizeof(attach))
	if err != nil {
		return nil, fmt.Errorf("attach the program: %w", err)
	}
	s.fds = append(s.fds, attached)
	return nil, nil
}

// put puts a socket into the map.
func put(sockets int, key uint32, c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var putErr error
	err = raw.Control(func(fd uintptr) {
		value := uint64(fd)
		attr := elementAttr{
			mapFD: uint32(sockets),
			key:   uint64(uintptr(unsafe.Pointer(&key))),
			value: uint64(uintptr(unsafe.Pointer(&value))),
		}
		_, putErr = bpf.Call(unix.BPF_MAP_UPDATE_ELEM, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		runtime.KeepAlive(&key)
		runtime.KeepAlive(&value)
	})
	if err := errors.Join(err, putErr); err != nil {
		return fmt.Errorf("put a socket into the map: %w", err)
	}
	return nil
}

// lookupProgram is the program, in the kernel's encoding: eight bytes for each
// instruction. It looks at struct bpf_sk_lookup and assigns the socket of the map
// whose key is the index of the first rule that fits.
func lookupProgram(sockets int, rules []Rule) []byte {
	const (
		family, protocol, ip4, ip6, port = 8, 12, 40, 44, 60 // offsets
		lookup, assign, release          = 1, 124, 86        // functions of the kernel
		load, moveReg, move              = 0x61, 0xbf, 0xb7
		jumpNot, jumpIs, jump            = 0x55, 0x15, 0x05
		store, add, call, exit           = 0x62, 0x07, 0x85, 0x95
		loadWide, mapFD                  = 0x18, 1
	)
	var b []byte
	at := func() int { return len(b) / 8 }
	emit := func(op, dst, src byte, off int16, imm int32) {
		b = append(b, op, dst|src<<4)
		b = binary.NativeEndian.AppendUint16(b, uint16(off))
		b = binary.NativeEndian.AppendUint32(b, uint32(imm))
	}
	// land lets the jumps at these instructions lead to where we are.
	land := func(from []int) {
		for _, i := range from {
			binary.NativeEndian.PutUint16(b[8*i+2:], uint16(at()-i-1))
		}
	}
	emit(moveReg, 6, 1, 0, 0)
	var found []int
	for i, r := range rules {
		var differs []int
		want := func(offset int16, value int32) {
			emit(load, 2, 6, offset, 0)
			differs = append(differs, at())
			emit(jumpNot, 2, 0, 0, value)
		}
		want(protocol, int32(r.Protocol))
		// Addresses are in network order in memory, so their words are compared as
		// this machine reads them.
		first := int16(ip6)
		if r.Address.Is4() {
			want(family, unix.AF_INET)
			first = ip4
		} else {
			want(family, unix.AF_INET6)
		}
		bytes := r.Address.AsSlice()
		for n := 0; n < len(bytes); n += 4 {
			want(first+int16(n), int32(binary.NativeEndian.Uint32(bytes[n:])))
		}
		if r.Port != 0 {
			want(port, int32(r.Port))
		}
		emit(store, 10, 0, -4, int32(i)) // the key
		found = append(found, at())
		emit(jump, 0, 0, 0, 0)
		land(differs)
	}
	pass := []int{at()}
	emit(jump, 0, 0, 0, 0)
	land(found)
	emit(moveReg, 2, 10, 0, 0)
	emit(add, 2, 0, 0, -4)
	emit(loadWide, 1, mapFD, 0, int32(sockets)) // two instructions
	emit(0, 0, 0, 0, 0)
	emit(call, 0, 0, 0, lookup)
	pass = append(pass, at())
	emit(jumpIs, 0, 0, 0, 0)
	emit(moveReg, 7, 0, 0, 0)
	emit(moveReg, 1, 6, 0, 0)
	emit(moveReg, 2, 7, 0, 0)
	emit(move, 3, 0, 0, 0)
	emit(call, 0, 0, 0, assign)
	emit(moveReg, 1, 7, 0, 0)
	emit(call, 0, 0, 0, release)
	land(pass)
	emit(move, 0, 0, 0, 1)
	emit(exit, 0, 0, 0, 0)
	return b
}
