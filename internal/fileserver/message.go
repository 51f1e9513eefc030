package fileserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"
)

// A message is a header, of two numbers of 32 bits in the byte order of the
// host, and a body: what it is, and how long its body is.
const (
	headerBytes = 8
	// maxBody is what QEMU has room for.
	maxBody = 64 << 10
)

// What replies are. Those to opCreate and opOpen have no header: they are a
// number, fileFollows or a negative errno, and in the first case a descriptor
// comes with it.
const (
	replySuccess = 0
	replyError   = 1
	fileFollows  = math.MaxInt32
)

// operation is what a request is.
type operation uint32

// The operations of QEMU's proxy driver.
const (
	opOpen operation = iota + 2
	opCreate
	opMknod
	opMkdir
	opSymlink
	opLink
	opLstat
	opReadlink
	opStatfs
	opChmod
	opChown
	opTruncate
	opUtime
	opRename
	opRemove
	opGetxattr
	opListxattr
	opSetxattr
	opRemovexattr
	opGetversion
)

// request is a request. Which fields count depends on op.
type request struct {
	op operation
	// path is that of the file, from the directory that is served. target is
	// the new path of opLink and opRename, and what a symbolic link says.
	path, target    string
	name            string // of an attribute
	value           string // of an attribute
	flags, mode     uint32
	uid, gid        uint32
	size            uint32 // of the peer's buffer
	device, length  uint64
	accessed, wrote unix.Timespec
}

// decode reads the body of a request. An error is a peer that is not QEMU.
func decode(op operation, body []byte) (request, error) {
	r, d := request{op: op}, decoder{rest: body}
	switch op {
	case opLstat, opStatfs, opRemove, opGetversion:
		r.path = d.path()
	case opOpen:
		r.path, r.flags = d.path(), d.u32()
	case opCreate:
		r.path, r.flags, r.mode, r.uid, r.gid = d.path(), d.u32(), d.u32(), d.u32(), d.u32()
	case opMknod:
		r.uid, r.gid, r.path, r.mode, r.device = d.u32(), d.u32(), d.path(), d.u32(), d.u64()
	case opMkdir:
		r.uid, r.gid, r.path, r.mode = d.u32(), d.u32(), d.path(), d.u32()
	case opSymlink:
		r.uid, r.gid, r.target, r.path = d.u32(), d.u32(), d.path(), d.path()
	case opLink, opRename:
		r.path, r.target = d.path(), d.path()
	case opReadlink:
		r.path, r.size = d.path(), d.u32()
	case opChmod:
		r.path, r.mode = d.path(), d.u32()
	case opChown:
		r.path, r.uid, r.gid = d.path(), d.u32(), d.u32()
	case opTruncate:
		r.path, r.length = d.path(), d.u64()
	case opUtime:
		r.path, r.accessed, r.wrote = d.path(), d.time(), d.time()
	case opGetxattr:
		r.size, r.path, r.name = d.u32(), d.path(), d.text()
	case opListxattr:
		r.size, r.path = d.u32(), d.path()
	case opSetxattr:
		r.path, r.name, r.value, r.size, r.flags = d.path(), d.text(), d.text(), d.u32(), d.u32()
		if uint64(r.size) != uint64(len(r.value)) {
			d.bad = true
		}
	case opRemovexattr:
		r.path, r.name = d.path(), d.text()
	default:
		return request{}, fmt.Errorf("request %d is unknown", op)
	}
	if d.bad || len(d.rest) > 0 {
		return request{}, fmt.Errorf("request %d of %d bytes does not end where it should", op, len(body))
	}
	return r, nil
}

// decoder takes values from the front of a body. After one that is not there it
// is bad and returns zeros.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || len(d.rest) < n {
		d.bad = true
		return make([]byte, 8)[:min(n, 8)]
	}
	v := d.rest[:n]
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) u32() uint32 { return binary.NativeEndian.Uint32(d.take(4)) }

func (d *decoder) u64() uint64 { return binary.NativeEndian.Uint64(d.take(8)) }

func (d *decoder) time() unix.Timespec {
	return unix.Timespec{Sec: int64(d.u64()), Nsec: int64(d.u64())}
}

// text is a length of 16 bits and as many bytes.
func (d *decoder) text() string {
	n := int(binary.NativeEndian.Uint16(d.take(2)))
	if d.bad || len(d.rest) < n {
		d.bad = true
		return ""
	}
	return string(d.take(n))
}

// path is a text that may have its end in it: QEMU counts it for some.
func (d *decoder) path() string { return strings.TrimSuffix(d.text(), "\x00") }

// reply puts the header before a body.
func reply(kind uint32, body []byte) []byte {
	m := binary.NativeEndian.AppendUint32(make([]byte, 0, headerBytes+len(body)), kind)
	m = binary.NativeEndian.AppendUint32(m, uint32(len(body)))
	return append(m, body...)
}

// number is a body that is one number of 32 bits.
func number(n int32) []byte {
	return binary.NativeEndian.AppendUint32(nil, uint32(n))
}

// status is an error as a body: the negative errno.
func status(err error) []byte {
	errno := unix.EIO
	_ = errors.As(err, &errno)
	return number(-int32(errno))
}

// text is a body that is one text.
func text(b []byte) []byte {
	return append(binary.NativeEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// maxText is the longest text that a body can hold.
const maxText = maxBody - 2

// words is a body of numbers of 64 bits.
func words(body []byte, values ...uint64) []byte {
	for _, v := range values {
		body = binary.NativeEndian.AppendUint64(body, v)
	}
	return body
}

// attributes is the body that describes a file.
func attributes(st *unix.Stat_t) []byte {
	body := words(nil, st.Dev, st.Ino, uint64(st.Nlink)) //nolint:unconvert // 32 bits on other architectures
	for _, v := range []uint32{st.Mode, st.Uid, st.Gid} {
		body = binary.NativeEndian.AppendUint32(body, v)
	}
	body = words(body, st.Rdev)
	return words(body, uint64(st.Size), uint64(st.Blksize), uint64(st.Blocks),
		uint64(st.Atim.Sec), uint64(st.Atim.Nsec), uint64(st.Mtim.Sec), uint64(st.Mtim.Nsec),
		uint64(st.Ctim.Sec), uint64(st.Ctim.Nsec))
}

// space is the body that describes a file system.
func space(st *unix.Statfs_t) []byte {
	return words(nil, uint64(st.Type), uint64(st.Bsize), st.Blocks, st.Bfree, st.Bavail, st.Files, st.Ffree,
		uint64(uint32(st.Fsid.Val[0])), uint64(uint32(st.Fsid.Val[1])), uint64(st.Namelen), uint64(st.Frsize))
}
