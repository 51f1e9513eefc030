package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/seed-efd44b36/kata/internal/flock"
	"github.com/seed-efd44b36/kata/internal/image/layer"
)

// ErrNotFound says that there is no such image in the store, the registry or
// the archive that was asked.
var ErrNotFound = errors.New("image not found")

// Image is an image that the store has, ready to be mounted. It can be kept
// as JSON by whoever uses it.
type Image struct {
	// Name as it was pulled, in full: "docker.io/library/busybox:latest".
	Name string `json:"name"`
	// ID is the digest of the configuration.
	ID string `json:"id"`
	// Digest is that of the manifest; old Docker archives have none, it is
	// the ID then.
	Digest string `json:"digest"`
	// Created is when the image was built, as it says, Pulled when it came.
	Created time.Time `json:"created"`
	Pulled  time.Time `json:"pulled"`
	// Layers, the lowest first.
	Layers []Layer `json:"layers"`
	// Size is the number of bytes in the files of all layers.
	Size int64 `json:"size"`
	// Config says what to run and how.
	Config imagespec.ImageConfig `json:"config"`
}

// Layer is an unpacked layer.
type Layer struct {
	// DiffID is the digest of the layer's tar stream.
	DiffID string `json:"diff_id"`
	// Key names the directory of the store: the DiffID, or, for a layer that
	// depends on the ones below it, the digest of all of them.
	Key string `json:"key"`
	// Bytes of file content.
	Bytes int64 `json:"bytes"`
}

// Limits bound what one layer may use. The zero value is good.
type Limits = layer.Limits

// Tree shows the files of an image or of a directory; see [Store.Tree].
type Tree = layer.Tree

// Store keeps images below one directory, which is only root's to read. Any
// number of processes may use it at once.
type Store struct {
	// Limits of a layer; the zero value is good.
	Limits Limits
	// Log gets what a person may want to know later; nil: nothing is logged.
	Log *slog.Logger

	dir string
}

// NewStore returns the store in dir, an absolute path. Nothing is made there
// before it is needed.
func NewStore(dir string) *Store { return &Store{dir: dir} }

// prepare makes the directories of the store.
func (s *Store) prepare() error {
	if !filepath.IsAbs(s.dir) {
		return fmt.Errorf("image store %q: the path is not absolute", s.dir)
	}
	for _, d := range []string{"configs/sha256", "layers/sha256", "tmp"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return fmt.Errorf("make image store: %w", err)
		}
	}
	// Files of images keep their set-user-ID bits, so nobody else gets in.
	for _, d := range []string{"layers", "tmp"} {
		if err := os.Chmod(s.path(d), 0o700); err != nil {
			return fmt.Errorf("make image store: %w", err)
		}
	}
	return nil
}

// PullOptions changes how an image is fetched. The zero value is good.
type PullOptions struct {
	// Progress is called from time to time by the goroutine that called the
	// store; nil: nobody wants to know.
	Progress func(Progress)
	// Transport is used to talk to registries; nil: the default one.
	Transport http.RoundTripper
	// Arch is an architecture as Go names it; "": this machine's.
	Arch string
}

// Progress says how far fetching and unpacking has come.
type Progress struct {
	// Layer is the number of the layer, from 1, of Layers. 0: the manifest.
	Layer, Layers int
	// Digest of the layer's tar stream.
	Digest string
	// Done of Total bytes of the layer as it is sent; Total 0: unknown.
	Done, Total int64
	// Cached says that the store has the layer already.
	Cached bool
}

// index is the content of index.json.
type index struct {
	Version int              `json:"version"`
	Images  map[string]Image `json:"images"`
}

const indexVersion = 1

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *Store) readIndex() (index, error) {
	idx := index{Version: indexVersion, Images: map[string]Image{}}
	data, err := os.ReadFile(s.path("index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return idx, nil
	}
	if err != nil {
		return idx, fmt.Errorf("read image index: %w", err)
	}
	if err := json.Unmarshal(data, &idx); err != nil {
		return idx, fmt.Errorf("parse %s (remove it and pull the images again): %w", s.path("index.json"), err)
	}
	if idx.Version != indexVersion {
		return idx, fmt.Errorf("%s has version %d, this program knows %d", s.path("index.json"), idx.Version, indexVersion)
	}
	return idx, nil
}

// changeIndex rewrites the index under its lock.
func (s *Store) changeIndex(ctx context.Context, change func(*index) error) error {
	lock, err := flock.Exclusive(ctx, s.path("index.lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	idx, err := s.readIndex()
	if err != nil {
		return err
	}
	if err := change(&idx); err != nil {
		return err
	}
	data, err := json.Marshal(idx)
	if err != nil {
		return fmt.Errorf("encode image index: %w", err)
	}
	return s.writeFile("index.json", data)
}

// writeFile replaces a file of the store so that a crash leaves the old or
// the new content.
func (s *Store) writeFile(name string, data []byte) error {
	f, err := os.CreateTemp(s.path("tmp"), "file-")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), s.path(name))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// Images lists the images of the store by name.
func (s *Store) Images() ([]Image, error) {
	idx, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	images := make([]Image, 0, len(idx.Images))
	for _, img := range idx.Images {
		images = append(images, img)
	}
	slices.SortFunc(images, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	return images, nil
}

// Get finds an image by its name, as for [Store.Pull], or by the first six or
// more digits of its ID. The error is [ErrNotFound] when it is not there.
func (s *Store) Get(name string) (Image, error) {
	idx, err := s.readIndex()
	if err != nil {
		return Image{}, err
	}
	return idx.find(name)
}

func (idx index) find(name string) (Image, error) {
	if img, ok := idx.Images[name]; ok {
		return img, nil
	}
	if ref, err := parseReference(name); err == nil {
		if img, ok := idx.Images[ref.name]; ok {
			return img, nil
		}
	}
	if prefix := strings.TrimPrefix(name, "sha256:"); len(prefix) >= 6 {
		var found *Image
		for _, img := range idx.Images {
			if !strings.HasPrefix(strings.TrimPrefix(img.ID, "sha256:"), prefix) {
				continue
			}
			if found != nil && found.ID != img.ID {
				return Image{}, fmt.Errorf("image ID %q fits more than one image, give more digits", name)
			}
			found = &img
		}
		if found != nil {
			return *found, nil
		}
	}
	return Image{}, fmt.Errorf("%w: %s", ErrNotFound, name)
}

// Remove forgets the name. Layers that no image needs any more stay until
// [Store.GC] is called.
func (s *Store) Remove(ctx context.Context, name string) (Image, error) {
	var img Image
	err := s.changeIndex(ctx, func(idx *index) error {
		var err error
		if img, err = idx.find(name); err != nil {
			return err
		}
		delete(idx.Images, img.Name)
		return nil
	})
	return img, err
}

// Hold keeps GC from removing anything until release is called: from Get until
// [Store.Mount] has recorded that the image is in use.
func (s *Store) Hold(ctx context.Context) (release func(), err error) {
	if err := s.prepare(); err != nil {
		return nil, err
	}
	lock, err := flock.Shared(ctx, s.path("lock"))
	if err != nil {
		return nil, err
	}
	return func() { _ = lock.Close() }, nil
}

// GC removes layers that belong neither to an image in the index nor to a
// container, and what interrupted pulls have left. It waits for pulls and holders
// to end, and then asks for the directories given to [Store.Mount] that are to be
// kept. It returns the number of layers removed.
func (s *Store) GC(ctx context.Context, kept func() ([]string, error)) (int, error) {
	if _, err := os.Stat(s.dir); errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err := s.prepare(); err != nil {
		return 0, err
	}
	lock, err := flock.Exclusive(ctx, s.path("lock"))
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	idx, err := s.readIndex()
	if err != nil {
		return 0, err
	}
	dirs, err := kept()
	if err != nil {
		return 0, err
	}
	images := slices.Collect(maps.Values(idx.Images))
	for _, dir := range dirs {
		img, err := MountedImage(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it uses no image
		}
		if err != nil {
			return 0, err
		}
		images = append(images, img)
	}
	layers, configs := make(map[string]bool), make(map[string]bool)
	for _, img := range images {
		configs[strings.TrimPrefix(img.ID, "sha256:")] = true
		for _, l := range img.Layers {
			layers[strings.TrimPrefix(l.Key, "sha256:")] = true
		}
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return 0, fmt.Errorf("open image store: %w", err)
	}
	defer func() { _ = root.Close() }()

	var errs []error
	removed := 0
	for _, name := range names(root, "layers/sha256", &errs) {
		if layers[name] {
			continue
		}
		// Away under its name first, so that no half layer is ever found.
		if err := root.Rename("layers/sha256/"+name, "tmp/old-"+name); err != nil {
			errs = append(errs, err)
			continue
		}
		removed++
	}
	for _, name := range names(root, "configs/sha256", &errs) {
		if !configs[name] {
			errs = append(errs, root.Remove("configs/sha256/"+name))
		}
	}
	for _, name := range names(root, "tmp", &errs) {
		errs = append(errs, root.RemoveAll("tmp/"+name))
	}
	if err := errors.Join(errs...); err != nil {
		return removed, fmt.Errorf("clean image store: %w", err)
	}
	return removed, nil
}

func names(root *os.Root, dir string, errs *[]error) []string {
	entries, err := fs.ReadDir(root.FS(), dir)
	*errs = append(*errs, err)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}
