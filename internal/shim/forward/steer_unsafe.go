package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The attributes of bpf(2) that we use. They are larger in newer kernels, which
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

type loadAttr struct {
	progType    uint32
	insnCount   uint32
	insns       uint64
	license     uint64
	logLevel    uint32
	logSize     uint32
	logBuf      uint64
	kernVersion uint32
	progFlags   uint32
	progName    [16]byte
	progIfindex uint32
	attachType  uint32
}

type linkAttr struct {
	progFD, targetFD, attachType, flags uint32
}

// bpf calls bpf(2). The attributes are size bytes at attr, a struct of the caller's
// that lives until the call returns.
func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		switch {
		case errno == 0:
			return int(fd), nil
		case errno != unix.EAGAIN && errno != unix.EINTR:
			return -1, errno
		}
	}
}

// steering is the program as it is attached; it ends with the descriptors.
type steering struct{ fds []int }

func (s *steering) close() error {
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

// steer gives the listeners, which are those of loopbacks in its order, the
// connections to every port of their addresses in the namespace.
func steer(ns *os.File, listeners []*net.TCPListener) (_ *steering, err error) {
	s := &steering{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("the kernel does not give ports away (sk_lookup): %w: %w", errors.ErrUnsupported, err), s.close())
		}
	}()
	const socketSize, keySize = 8, 4
	create := mapAttr{mapType: unix.BPF_MAP_TYPE_SOCKMAP, keySize: keySize, valueSize: socketSize, maxEntries: uint32(len(loopbacks()))}
	sockets, err := bpf(unix.BPF_MAP_CREATE, unsafe.Pointer(&create), unsafe.Sizeof(create))
	if err != nil {
		return s, fmt.Errorf("make a map of sockets: %w", err)
	}
	s.fds = append(s.fds, sockets)
	for i, l := range listeners {
		if err := put(sockets, uint32(i), l); err != nil {
			return s, err
		}
	}
	code := lookupProgram(sockets)
	license := []byte("Apache\x00")
	load := loadAttr{
		progType: unix.BPF_PROG_TYPE_SK_LOOKUP, attachType: unix.BPF_SK_LOOKUP,
		insnCount: uint32(len(code) / 8),
		insns:     uint64(uintptr(unsafe.Pointer(&code[0]))),
		license:   uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	prog, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if err != nil {
		return s, fmt.Errorf("load the program: %w", err)
	}
	s.fds = append(s.fds, prog)
	attach := linkAttr{progFD: uint32(prog), targetFD: uint32(ns.Fd()), attachType: unix.BPF_SK_LOOKUP}
	attached, err := bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&attach), unsafe.Sizeof(attach))
	if err != nil {
		return s, fmt.Errorf("attach the program: %w", err)
	}
	s.fds = append(s.fds, attached)
	return s, nil
}

// put puts a listener into the map.
func put(sockets int, key uint32, l *net.TCPListener) error {
	raw, err := l.SyscallConn()
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
		_, putErr = bpf(unix.BPF_MAP_UPDATE_ELEM, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		runtime.KeepAlive(&key)
		runtime.KeepAlive(&value)
	})
	if err := errors.Join(err, putErr); err != nil {
		return fmt.Errorf("put a listener into the map: %w", err)
	}
	return nil
}

// lookupProgram is the program, in the kernel's encoding: eight bytes for each
// instruction. It looks at struct bpf_sk_lookup and assigns the socket of the map
// whose key is the loopback address that is connected to, if it is one.
func lookupProgram(sockets int) []byte {
	const (
		family, protocol, ip4, ip6 = 8, 12, 40, 44 // offsets
		lookup, assign, release    = 1, 124, 86    // functions of the kernel
		load, moveReg, move        = 0x61, 0xbf, 0xb7
		jumpNot, jumpIs, jump      = 0x55, 0x15, 0x05
		store, add, call, exit     = 0x62, 0x07, 0x85, 0x95
		loadWide, mapFD            = 0x18, 1
	)
	var b []byte
	emit := func(op, dst, src byte, off int16, imm int32) {
		b = append(b, op, dst|src<<4)
		b = binary.NativeEndian.AppendUint16(b, uint16(off))
		b = binary.NativeEndian.AppendUint32(b, uint32(imm))
	}
	// Addresses are in network order in memory, so their words are compared as
	// this machine reads them.
	word := func(ip ...byte) int32 { return int32(binary.NativeEndian.Uint32(ip)) }
	const pass = 32 // the index of the instruction that lets the lookup go on
	at := func() int16 { return int16(len(b) / 8) }
	toPass := func() int16 { return pass - at() - 1 }

	emit(moveReg, 6, 1, 0, 0)
	emit(load, 2, 6, protocol, 0)
	emit(jumpNot, 2, 0, toPass(), unix.IPPROTO_TCP)
	emit(load, 2, 6, family, 0)
	emit(jumpIs, 2, 0, 5, unix.AF_INET6)
	emit(jumpNot, 2, 0, toPass(), unix.AF_INET)
	emit(load, 2, 6, ip4, 0)
	emit(jumpNot, 2, 0, toPass(), word(127, 0, 0, 1))
	emit(store, 10, 0, -4, 0) // key 0
	emit(jump, 0, 0, 9, 0)
	for i := range int16(3) { // AF_INET6
		emit(load, 2, 6, ip6+4*i, 0)
		emit(jumpNot, 2, 0, toPass(), 0)
	}
	emit(load, 2, 6, ip6+12, 0)
	emit(jumpNot, 2, 0, toPass(), word(0, 0, 0, 1))
	emit(store, 10, 0, -4, 1) // key 1
	emit(moveReg, 2, 10, 0, 0)
	emit(add, 2, 0, 0, -4)
	emit(loadWide, 1, mapFD, 0, int32(sockets)) // two instructions
	emit(0, 0, 0, 0, 0)
	emit(call, 0, 0, 0, lookup)
	emit(jumpIs, 0, 0, toPass(), 0)
	emit(moveReg, 7, 0, 0, 0)
	emit(moveReg, 1, 6, 0, 0)
	emit(moveReg, 2, 7, 0, 0)
	emit(move, 3, 0, 0, 0)
	emit(call, 0, 0, 0, assign)
	emit(moveReg, 1, 7, 0, 0)
	emit(call, 0, 0, 0, release)
	emit(move, 0, 0, 0, 1)
	emit(exit, 0, 0, 0, 0)
	return b
}
