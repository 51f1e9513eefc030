// Package testimage builds the OCI images that tests and the demonstration run,
// from Debian's packages and without a registry: "busybox", one small layer with
// the host's busybox and its libraries; "debian", a system with dpkg; "nginx",
// Debian's nginx; "pause", what keeps a pod. They lie in a cache as OCI layouts,
// one directory each, and are built again when their recipe or its inputs change.
package testimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// CacheDir returns the directory that images are cached in.
func CacheDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("test images: %w", err)
	}
	return filepath.Join(cache, "kata-test"), nil
}

// Names returns the names of all images.
func Names() []string {
	var names []string
	for _, r := range recipes() {
		names = append(names, r.name)
	}
	return names
}

// Build makes the named image below dir, unless it is there and current, and
// returns the directory of its OCI layout (DIR/NAME, tag "latest"). It may be
// called by several processes at once.
func Build(ctx context.Context, dir, name string) (string, error) {
	layoutDir, err := build(ctx, dir, name)
	if err != nil {
		return "", fmt.Errorf("test image %s: %w", name, err)
	}
	return layoutDir, nil
}

func build(ctx context.Context, dir, name string) (string, error) {
	r, err := find(name)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(dir, name+".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()

	key, err := r.key()
	if err != nil {
		return "", err
	}
	layoutDir, keyFile := filepath.Join(dir, name), filepath.Join(dir, name+".key")
	if have, err := os.ReadFile(keyFile); err == nil && string(have) == key {
		return layoutDir, nil
	}

	scratch, err := os.MkdirTemp(dir, "."+name+"-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	if err := write(ctx, r, scratch, filepath.Join(scratch, "layout")); err != nil {
		return "", err
	}
	// The key goes first and comes last: what has one is whole.
	if err := os.Remove(keyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := os.RemoveAll(layoutDir); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(scratch, "layout"), layoutDir); err != nil {
		return "", err
	}
	return layoutDir, os.WriteFile(keyFile, []byte(key), 0o644)
}

// lock waits for the exclusive lock on the file.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// recipe says how an image is made: one layer and its configuration.
type recipe struct {
	name   string
	config v1.Config
	zstd   bool
	// inputs are files that the layer is made of, by write.
	inputs func() ([]string, error)
	source []byte // further input
	write  func(ctx context.Context, w io.Writer, files []string) error
	// command writes the layer's tar to standard output; when empty, the layer
	// is made of the inputs.
	command []string
}

func find(name string) (recipe, error) {
	for _, r := range recipes() {
		if r.name == name {
			return r, nil
		}
	}
	return recipe{}, fmt.Errorf("there is no such recipe; there are: %s", strings.Join(Names(), ", "))
}

// formatVersion is raised when the code makes something else of a recipe.
const formatVersion = 1

// key identifies what the recipe makes.
func (r recipe) key() (string, error) {
	h := sha256.New()
	enc := json.NewEncoder(h)
	if err := errors.Join(enc.Encode(formatVersion), enc.Encode(r.config), enc.Encode(r.zstd), enc.Encode(r.command)); err != nil {
		return "", err
	}
	h.Write(r.source)
	if r.inputs != nil {
		files, err := r.inputs()
		if err != nil {
			return "", err
		}
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(h, "%s %d\n", f, len(data))
			h.Write(data)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// write makes the image's OCI layout in layoutDir.
func write(ctx context.Context, r recipe, scratch, layoutDir string) error {
	tarFile := filepath.Join(scratch, "layer.tar")
	if err := r.writeLayer(ctx, tarFile); err != nil {
		return err
	}
	layer, err := tarball.LayerFromFile(tarFile, r.layerOptions()...)
	if err != nil {
		return fmt.Errorf("compress layer: %w", err)
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.Append(image, mutate.Addendum{
		Layer:   layer,
		History: v1.History{CreatedBy: "kata test image " + r.name},
	})
	if err != nil {
		return fmt.Errorf("add layer: %w", err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		return err
	}
	file = file.DeepCopy()
	file.Architecture, file.OS, file.Config = "amd64", "linux", r.config
	file.Created = v1.Time{Time: epoch()}
	if image, err = mutate.ConfigFile(image, file); err != nil {
		return fmt.Errorf("set configuration: %w", err)
	}
	path, err := layout.Write(layoutDir, empty.Index)
	if err != nil {
		return err
	}
	return path.AppendImage(image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "latest"}))
}

// epoch is the time of all files and images, so that they are the same each time.
func epoch() time.Time { return time.Unix(1_700_000_000, 0).UTC() }
