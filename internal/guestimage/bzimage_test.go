package guestimage

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
)

// xzX86 is xzText compressed as the kernel's build does it: with the filter for
// x86 code and a dictionary of 32 MiB.
const (
	xzText = "call \xe8\x01\x02\x03\x00 and the rest of it"
	xzX86  = "fd377a585a0000016922de360201040021011a0001c980b301001c63616c6c20e80b02030020616e64207468652072657374206f662069740000000081fff00b0001311d40dedd859042990d010000000001595a"
)

func TestKernelELF(t *testing.T) {
	kernel := testKernel(t, strings.Repeat("pattern", 1000))
	xz, err := hex.DecodeString(xzX86)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		payload []byte
		want    []byte
	}{
		{"gzip", gzipped(t, kernel), kernel},
		{"zstd", withSize(zstdCompressed(t, kernel), len(kernel)), kernel},
		{"lz4", withSize(lz4Compressed(t, kernel), len(kernel)), kernel},
		{"xz", withSize(xz, len(xzText)), []byte(xzText)},
		{"none", withSize(slices.Clone(kernel), len(kernel)), kernel},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := kernelELF(testBzImage(tt.payload), maxKernel)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, tt.want) {
				t.Errorf("got %d bytes that differ from the %d that were compressed", len(got), len(tt.want))
			}
			if _, err := kernelELF(testBzImage(tt.payload), len(tt.want)-1); err == nil {
				t.Error("no error above the limit")
			}
		})
	}
}

func TestKernelELFErrors(t *testing.T) {
	le := binary.LittleEndian
	good := testBzImage(gzipped(t, testKernel(t, "")))
	edit := func(f func(b []byte)) []byte {
		b := slices.Clone(good)
		f(b)
		return b
	}
	zst := zstdCompressed(t, testKernel(t, ""))
	tests := []struct {
		name  string
		image []byte
		want  string
	}{
		{"empty", nil, "not an x86-64 Linux kernel"},
		{"short", good[:hdrEnd-1], "not an x86-64 Linux kernel"},
		{"no boot flag", edit(func(b []byte) { b[hdrBootFlag] = 0 }), "not an x86-64 Linux kernel"},
		{"no magic", edit(func(b []byte) { b[hdrMagic] = 'h' }), "not an x86-64 Linux kernel"},
		{"old protocol", edit(func(b []byte) { le.PutUint16(b[hdrVersion:], 0x0207) }), "2.07 is too old"},
		{"32 bits", edit(func(b []byte) { b[hdrXLoadFlags] = 0 }), "32-bit"},
		{"cut", good[:len(good)-1], "truncated"},
		{"payload far away", edit(func(b []byte) { le.PutUint32(b[hdrPayloadOffset:], 0xffffffff) }), "truncated"},
		{"payload too long", edit(func(b []byte) { le.PutUint32(b[hdrPayloadLength:], 0xffffffff) }), "truncated"},
		{"no payload", edit(func(b []byte) { le.PutUint32(b[hdrPayloadLength:], 3) }), "no payload"},
		{"claims too much", testBzImage(withSize(zst, 0x7fffffff)), "more than"},
		{"claims too little", testBzImage(withSize(zst, 10)), "more than 10 bytes"},
		{"claims more than there is", testBzImage(withSize(zst, 100_000)), "instead of 100000"},
		{"lzma", testBzImage(withSize([]byte("\x5d\x00\x00rubbish"), 10)), "lzma compression is not supported"},
		{"lzo", testBzImage(withSize([]byte("\x89LZO rubbish"), 10)), "lzo compression is not supported"},
		{"damaged", testBzImage(withSize(append(slices.Clone(zst[:len(zst)-9]), "rubbish"...), len(testKernel(t, "")))), "zstd: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := kernelELF(tt.image, 1<<20)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
		})
	}
}

func FuzzKernelELF(f *testing.F) {
	kernel := testKernel(f, "")
	xz, err := hex.DecodeString(xzX86)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(kernel)
	f.Add(testBzImage(gzipped(f, kernel)))
	f.Add(testBzImage(withSize(zstdCompressed(f, kernel), len(kernel))))
	f.Add(testBzImage(withSize(lz4Compressed(f, kernel), len(kernel))))
	f.Add(testBzImage(withSize(xz, len(xzText))))
	f.Fuzz(func(t *testing.T, image []byte) {
		const limit = 64 << 10
		data, err := kernelELF(image, limit)
		if err != nil {
			return
		}
		if len(data) > limit {
			t.Fatalf("%d bytes, more than %d", len(data), limit)
		}
		k, err := inspectKernel(data)
		if err != nil {
			return
		}
		slim, err := slimKernel(data)
		if err != nil {
			return
		}
		again, err := inspectKernel(slim)
		if err != nil {
			// What was read may have been outside of the segments.
			return
		}
		if again.Microvm && !k.Microvm {
			t.Errorf("after slimming: %+v, before: %+v", again, k)
		}
	})
}
