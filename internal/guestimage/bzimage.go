package guestimage

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
)

// maxKernel bounds the uncompressed size of a kernel in bytes: three times what
// the largest distribution kernels need.
const maxKernel = 256 << 20

// errNotKernel says that a file is not a kernel image we can read.
var errNotKernel = errors.New("not an x86-64 Linux kernel image (bzImage or uncompressed ELF)")

// The fields of the x86 boot protocol's setup header that are used here, by
// their offset in the file (Documentation/arch/x86/boot.rst).
const (
	hdrSetupSects    = 0x1f1
	hdrBootFlag      = 0x1fe
	hdrMagic         = 0x202
	hdrVersion       = 0x206
	hdrXLoadFlags    = 0x236
	hdrPayloadOffset = 0x248
	hdrPayloadLength = 0x24c
	hdrEnd           = 0x250
)

// kernelELF returns the uncompressed ELF kernel that image holds; at most limit
// bytes are produced.
func kernelELF(image []byte, limit int) ([]byte, error) {
	if bytes.HasPrefix(image, []byte(magicELF)) {
		if len(image) > limit {
			return nil, fmt.Errorf("kernel of %d bytes is larger than %d bytes", len(image), limit)
		}
		return image, nil
	}
	payload, err := bzImagePayload(image)
	if err != nil {
		return nil, err
	}
	if len(payload) < 4 {
		return nil, errors.New("bzImage has no payload")
	}
	// The build appends the uncompressed size, except for gzip, which has it
	// at its own end.
	size := binary.LittleEndian.Uint32(payload[len(payload)-4:])
	if int64(size) > int64(limit) {
		return nil, fmt.Errorf("kernel claims %d bytes uncompressed, more than %d", size, limit)
	}
	if !bytes.HasPrefix(payload, []byte(magicGzip)) {
		payload = payload[:len(payload)-4]
	}
	out, err := decompress(payload, int64(size))
	if err != nil {
		return nil, fmt.Errorf("unpack bzImage: %w", err)
	}
	if len(out) != int(size) {
		return nil, fmt.Errorf("unpack bzImage: %d bytes instead of %d", len(out), size)
	}
	return out, nil
}

// bzImagePayload returns the compressed kernel inside a bzImage, with the four
// bytes of its uncompressed size at its end.
func bzImagePayload(image []byte) ([]byte, error) {
	if len(image) < hdrEnd ||
		binary.LittleEndian.Uint16(image[hdrBootFlag:]) != 0xaa55 ||
		string(image[hdrMagic:hdrMagic+4]) != "HdrS" {
		return nil, errNotKernel
	}
	version := binary.LittleEndian.Uint16(image[hdrVersion:])
	if version < 0x020c {
		return nil, fmt.Errorf("boot protocol %d.%02d is too old, 2.12 is needed", version>>8, version&0xff)
	}
	if binary.LittleEndian.Uint16(image[hdrXLoadFlags:])&1 == 0 {
		return nil, errors.New("kernel is for 32-bit x86, x86-64 is needed")
	}
	sects := int64(image[hdrSetupSects])
	if sects == 0 {
		sects = 4
	}
	start := (sects+1)*512 + int64(binary.LittleEndian.Uint32(image[hdrPayloadOffset:]))
	end := start + int64(binary.LittleEndian.Uint32(image[hdrPayloadLength:]))
	if end > int64(len(image)) {
		return nil, fmt.Errorf("bzImage is truncated: %d bytes, payload ends at %d", len(image), end)
	}
	return image[start:end], nil
}

const (
	magicGzip = "\x1f\x8b"
	magicXZ   = "\xfd7zXZ\x00"
	magicZstd = "\x28\xb5\x2f\xfd"
	magicLZ4  = "\x02\x21\x4c\x18" // the legacy frame, as the kernel's build makes it
	magicELF  = "\x7fELF"
)

// decompress returns what data holds, by its magic; more than limit bytes are
// an error.
func decompress(data []byte, limit int64) ([]byte, error) {
	var (
		name string
		r    io.Reader
		err  error
	)
	in := bytes.NewReader(data)
	has := func(magic string) bool { return bytes.HasPrefix(data, []byte(magic)) }
	switch {
	case has(magicGzip):
		name = "gzip"
		r, err = gzip.NewReader(in)
	case has(magicXZ):
		name = "xz"
		r, err = xz.NewReader(in, 128<<20)
	case has(magicZstd):
		name = "zstd"
		// The kernel's build uses windows of 128 MiB (zstd -22).
		var d *zstd.Decoder
		if d, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20)); err == nil {
			defer d.Close()
			r = d
		}
	case has(magicLZ4):
		name = "lz4"
		r = lz4.NewReader(in)
	case has(magicELF):
		name, r = "none", in
	case has("BZh"):
		err = errors.New("bzip2 compression is not supported, gzip, xz, zstd and lz4 are")
	case has("\x5d\x00\x00"):
		err = errors.New("lzma compression is not supported, gzip, xz, zstd and lz4 are")
	case has("\x89LZO"):
		err = errors.New("lzo compression is not supported, gzip, xz, zstd and lz4 are")
	default:
		err = fmt.Errorf("unknown compression (starts with % x)", data[:min(len(data), 8)])
	}
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	n, err := io.Copy(&out, io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if n > limit {
		return nil, fmt.Errorf("%s: more than %d bytes uncompressed", name, limit)
	}
	return out.Bytes(), nil
}
