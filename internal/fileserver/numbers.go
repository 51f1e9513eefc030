package fileserver

import (
	"encoding/binary"
	"hash/maphash"
)

const (
	// device is the one that the guest gets to see.
	device = 1
	// inodeBits are those of a file's own number in the number that it gets.
	inodeBits = 48
	// maxDevices is how many file systems have a number in the bits above, but
	// for the highest bit.
	maxDevices = 1 << (63 - inodeBits)
)

// numbers gives files of several file systems numbers that are unique in all of
// them, always the same ones. The guest knows files by them: two names with one
// number are one file. A file has its own number, above which is that of its
// file system; where one of them has no room, the number is a hash.
type numbers struct {
	devices map[uint64]uint64 // at most maxDevices
	seed    maphash.Seed
}

func newNumbers() numbers {
	return numbers{devices: make(map[uint64]uint64), seed: maphash.MakeSeed()}
}

func (n *numbers) of(dev, ino uint64) uint64 {
	index, known := n.devices[dev]
	if !known && len(n.devices) < maxDevices {
		index, known = uint64(len(n.devices)), true
		n.devices[dev] = index
	}
	if known && ino < 1<<inodeBits {
		return index<<inodeBits | ino
	}
	var key [16]byte
	binary.NativeEndian.PutUint64(key[:8], dev)
	binary.NativeEndian.PutUint64(key[8:], ino)
	return 1<<63 | maphash.Bytes(n.seed, key[:])
}
