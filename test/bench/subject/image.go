package subject

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/seed-efd44b36/kata/test/harness"
	"github.com/seed-efd44b36/kata/test/testimage"
)

// Sizes of the files that are read: MiB.
const (
	sequentialMiB = 64
	randomMiB     = 32
)

// files makes the directory that is the volume, and the image: busybox with the
// same files.
func (r *Rig) files(ctx context.Context) error {
	if err := os.MkdirAll(r.volume(), 0o755); err != nil {
		return err
	}
	load, err := buildLoad(ctx)
	if err != nil {
		return err
	}
	contents := map[string][]byte{
		path.Base(Hello): hello(),
		path.Base(Load):  load,
		"sequential":     pages(sequentialMiB),
		"random":         pages(randomMiB),
	}
	for name, data := range contents {
		if err := os.WriteFile(filepath.Join(r.volume(), name), data, 0o755); err != nil {
			return err
		}
	}
	base, err := harness.Image(ctx, "busybox")
	if err != nil {
		return err
	}
	r.image = filepath.Join(r.dir, "image")
	if err := appendLayer(strings.TrimPrefix(base, "oci:"), r.image, contents); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	return nil
}

// buildLoad builds test/bench/load.
func buildLoad(ctx context.Context) ([]byte, error) {
	dir, err := os.MkdirTemp("", "kata-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "load")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, "github.com/seed-efd44b36/kata/test/bench/load")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build test/bench/load (is this the directory of the module?): %w: %s", err, out)
	}
	return os.ReadFile(file)
}

// pages returns content in which no page is the same as another, or nothing but
// zeros.
func pages(mib int) []byte {
	const page = 4 << 10
	data := make([]byte, mib<<20)
	for i := 0; i < len(data); i += 8 {
		binary.LittleEndian.PutUint64(data[i:], uint64(i/page)+1)
	}
	return data
}

// appendLayer writes the only image of a layout, with a further layer that has
// files in /bench, and an empty directory for the volume.
func appendLayer(from, to string, contents map[string][]byte) error {
	base, err := testimage.Read(from)
	if err != nil {
		return err
	}
	var layer bytes.Buffer
	t := tar.NewWriter(&layer)
	for _, dir := range []string{Data, Volume} {
		err = errors.Join(err, t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimPrefix(dir, "/") + "/", Mode: 0o755}))
	}
	for name, data := range contents {
		err = errors.Join(err, t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path.Join(Data, name), "/"), Mode: 0o755, Size: int64(len(data))}))
		_, werr := t.Write(data)
		err = errors.Join(err, werr)
	}
	if err := errors.Join(err, t.Close()); err != nil {
		return err
	}
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil }
	l, err := tarball.LayerFromOpener(opener, tarball.WithCompressedCaching, tarball.WithCompressionLevel(1), tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return err
	}
	image, err := mutate.AppendLayers(base, l)
	if err != nil {
		return err
	}
	out, err := layout.Write(to, empty.Index)
	if err != nil {
		return err
	}
	return out.AppendImage(image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"}))
}
