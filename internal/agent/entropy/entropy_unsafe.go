// Package entropy makes the guest's random generator start afresh, from a seed of the
// host's. The caller is the agent, before anything of a sandbox draws from it.
package entropy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxSeed bounds what one call may add, in bytes.
const maxSeed = 4096

// ErrInvalid is wrapped by errors about a seed that cannot be used.
var ErrInvalid = errors.New("invalid seed")

// Add mixes the seed into the kernel's random generator, credits it, and
// makes the generator start afresh from it.
func Add(seed []byte) error {
	if len(seed) == 0 || len(seed) > maxSeed {
		return fmt.Errorf("seed of %d bytes, want 1 to %d: %w", len(seed), maxSeed, ErrInvalid)
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	defer f.Close()
	// struct rand_pool_info: bits of entropy, bytes, and the bytes themselves.
	info := make([]byte, 0, 8+maxSeed)
	info = binary.NativeEndian.AppendUint32(info, uint32(8*len(seed)))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(seed)))
	info = append(info, seed...)
	// The kernel reads 8 bytes and as many more as they say, all of which info
	// has; it keeps no pointer.
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(unsafe.SliceData(info)))); errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.RNDRESEEDCRNG, 0); err != nil {
		return fmt.Errorf("reseed random generator: %w", err)
	}
	return nil
}
