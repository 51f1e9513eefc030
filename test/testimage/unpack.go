package testimage

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// Read returns the only image of an OCI layout.
func Read(layoutDir string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(layoutDir)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", layoutDir, err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", layoutDir, err)
	}
	if len(m.Manifests) != 1 {
		return nil, fmt.Errorf("image %s: %d images, want 1", layoutDir, len(m.Manifests))
	}
	return index.Image(m.Manifests[0].Digest)
}

// Unpack writes the files of the only image of an OCI layout into a directory, which
// it makes.
func Unpack(ctx context.Context, layoutDir, dir string) error {
	image, err := Read(layoutDir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("unpack image: %w", err)
	}
	files := mutate.Extract(image)
	defer files.Close()
	tar := exec.CommandContext(ctx, "tar", "-xp", "--numeric-owner", "-C", dir)
	tar.Stdin = files
	if out, err := tar.CombinedOutput(); err != nil {
		return fmt.Errorf("unpack image %s: %w: %s", layoutDir, err, out)
	}
	return nil
}
