package image

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"

	"github.com/klauspost/compress/zstd"
)

// zstdMemory bounds the window that a zstd stream may ask for, in bytes.
const zstdMemory = 128 << 20

// decompress reads gzip, zstd or plain data, told apart by the first bytes.
// Closing the result does not close r.
func decompress(r io.Reader) (rc io.ReadCloser, compressed bool, err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if len(head) == 0 && err != nil && !errors.Is(err, io.EOF) {
		return nil, false, fmt.Errorf("read: %w", err)
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, true, fmt.Errorf("gzip: %w", err)
		}
		return zr, true, nil
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdMemory))
		if err != nil {
			return nil, true, fmt.Errorf("zstd: %w", err)
		}
		return zr.IOReadCloser(), true, nil
	}
	return io.NopCloser(br), false, nil
}

var digestForm = regexp.MustCompile(`^sha256:([0-9a-f]{64})$`)

// digestHex returns the hexadecimal part of a digest. Only sha256 is known.
func digestHex(digest string) (string, error) {
	m := digestForm.FindStringSubmatch(digest)
	if m == nil {
		return "", fmt.Errorf("digest %.100q is not of the form sha256:HEX", digest)
	}
	return m[1], nil
}

func blobFile(digest string) (string, error) {
	h, err := digestHex(digest)
	if err != nil {
		return "", err
	}
	return path.Join("blobs", "sha256", h), nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}
