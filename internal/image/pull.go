package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/seed-efd44b36/kata/internal/flock"
	"github.com/seed-efd44b36/kata/internal/image/layer"
	"golang.org/x/sys/unix"
)

// Pull fetches an image and unpacks those of its layers that the store does
// not have. ref is a registry reference as Docker understands it,
// oci:DIR[:TAG], or a file made by `docker save` or `skopeo copy` (a path that
// starts with "/" or ".", or docker-archive:FILE[:TAG]).
func (s *Store) Pull(ctx context.Context, ref string, opts PullOptions) (Image, error) {
	r, err := parseReference(ref)
	if err != nil {
		return Image{}, err
	}
	return s.pull(ctx, r, opts)
}

// Ensure returns the image from the store and pulls it only when it is not
// there. What is not from a registry is always looked at again, since it costs
// nothing and may have changed.
func (s *Store) Ensure(ctx context.Context, ref string, opts PullOptions) (Image, error) {
	img, err := s.Get(ref)
	missing := errors.Is(err, ErrNotFound)
	if err != nil && !missing {
		return Image{}, err
	}
	r, err := parseReference(ref)
	switch {
	case !missing && (err != nil || r.kind == kindRegistry): // not a reference: an ID
		return img, nil //nolint:nilerr // see above
	case err != nil:
		return Image{}, err
	}
	return s.pull(ctx, r, opts)
}

func (s *Store) pull(ctx context.Context, ref reference, opts PullOptions) (Image, error) {
	release, err := s.Hold(ctx)
	if err != nil {
		return Image{}, err
	}
	defer release()
	src, err := openSource(ctx, ref, s.path("tmp"), opts)
	if err != nil {
		return Image{}, err
	}
	defer func() { _ = src.close() }()

	// Already there? Nothing needs to be written then.
	id := digestOf(src.config)
	if old, err := s.Get(src.name); err == nil && old.ID == id && s.complete(old) {
		return old, nil
	}
	img, err := parseConfig(src, id, opts.arch())
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", src.name, err)
	}
	if opts.Progress != nil {
		opts.Progress(Progress{Layers: len(img.Layers)})
	}
	chain := ""
	var lowers []string // the topmost first
	for i := range img.Layers {
		l := &img.Layers[i]
		chain = chainID(chain, l.DiffID)
		p := Progress{Layer: i + 1, Layers: len(img.Layers), Digest: l.DiffID, Total: src.layers[i].size}
		if err := s.ensureLayer(ctx, l, chain, lowers, src.layers[i], p, opts.Progress); err != nil {
			return Image{}, fmt.Errorf("image %s: layer %d of %d: %w", src.name, i+1, len(img.Layers), err)
		}
		lowers = append([]string{s.layerDir(l.Key)}, lowers...)
		img.Size += l.Bytes
	}
	if err := s.writeFile(filepath.Join("configs", "sha256", id[len("sha256:"):]), src.config); err != nil {
		return Image{}, err
	}
	img.Pulled = time.Now().UTC().Truncate(time.Second)
	err = s.changeIndex(ctx, func(idx *index) error {
		idx.Images[img.Name] = img
		return nil
	})
	if err != nil {
		return Image{}, err
	}
	return img, nil
}

func parseConfig(src *source, id, arch string) (Image, error) {
	if len(src.config) > maxJSON {
		return Image{}, fmt.Errorf("configuration is larger than %d bytes", maxJSON)
	}
	var c imagespec.Image
	if err := json.Unmarshal(src.config, &c); err != nil {
		return Image{}, fmt.Errorf("parse configuration: %w", err)
	}
	if c.OS != "" && c.OS != "linux" || c.Architecture != "" && c.Architecture != arch {
		return Image{}, fmt.Errorf("is for %s/%s, this machine runs linux/%s", c.OS, c.Architecture, arch)
	}
	if len(c.RootFS.DiffIDs) != len(src.layers) {
		return Image{}, fmt.Errorf("configuration lists %d layers, the manifest %d", len(c.RootFS.DiffIDs), len(src.layers))
	}
	img := Image{Name: src.name, ID: id, Digest: cmp.Or(src.manifest, id), Config: c.Config}
	if c.Created != nil {
		img.Created = c.Created.UTC()
	}
	for _, d := range c.RootFS.DiffIDs {
		if _, err := digestHex(d.String()); err != nil {
			return Image{}, err
		}
		img.Layers = append(img.Layers, Layer{DiffID: d.String()})
	}
	return img, nil
}

// chainID identifies a layer together with those below it, as the image
// specification defines it.
func chainID(below, diffID string) string {
	if below == "" {
		return diffID
	}
	return digestOf([]byte(below + " " + diffID))
}

// layerRecord is layer.json beside an unpacked layer.
type layerRecord struct {
	DiffID  string `json:"diff_id"`
	Bytes   int64  `json:"bytes"`
	Entries int    `json:"entries"`
	Implied bool   `json:"implied,omitempty"`
}

func (s *Store) layerDir(key string) string {
	return s.path("layers", "sha256", key[len("sha256:"):], "fs")
}

func (s *Store) layerRecord(key string) (layerRecord, error) {
	var rec layerRecord
	data, err := os.ReadFile(s.path("layers", "sha256", key[len("sha256:"):], "layer.json"))
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, fmt.Errorf("parse record of layer %s: %w", key, err)
	}
	return rec, nil
}

func (s *Store) complete(img Image) bool {
	for _, l := range img.Layers {
		if _, err := s.layerRecord(l.Key); err != nil {
			return false
		}
	}
	return true
}

// findLayer looks for an unpacked layer that can stand at this place.
func (s *Store) findLayer(l *Layer, chain string) (bool, error) {
	for _, key := range []string{chain, l.DiffID} {
		rec, err := s.layerRecord(key)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		if rec.Implied && key != chain {
			continue // it was completed from other layers below
		}
		l.Key, l.Bytes = key, rec.Bytes
		return true, nil
	}
	return false, nil
}

// ensureLayer finds or makes the layer's directory and fills in l.
func (s *Store) ensureLayer(ctx context.Context, l *Layer, chain string, lowers []string, b blob, p Progress, report func(Progress)) error {
	// Whoever is second waits and then finds it done.
	lock, err := flock.Exclusive(ctx, s.path("tmp", "layer-"+l.DiffID[len("sha256:"):]+".lock"))
	if err != nil {
		return err
	}
	defer lock.Close()
	found, err := s.findLayer(l, chain)
	if err != nil {
		return err
	}
	if found {
		p.Cached, p.Done = true, p.Total
		if report != nil {
			report(p)
		}
		return nil
	}
	tmp, err := os.MkdirTemp(s.path("tmp"), "layer-")
	if err != nil {
		return fmt.Errorf("make layer directory: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	done, err := s.fetchLayer(ctx, tmp, l.DiffID, lowers, b, p, report)
	if err != nil {
		return err
	}
	l.Key, l.Bytes = l.DiffID, done.Bytes
	if done.Implied {
		l.Key = chain
	}
	return s.commitLayer(tmp, l, done)
}

// fetchLayer unpacks the blob into tmp/fs and compares its digest.
func (s *Store) fetchLayer(ctx context.Context, tmp, diffID string, lowers []string, b blob, p Progress, report func(Progress)) (layer.Info, error) {
	dir := filepath.Join(tmp, "fs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return layer.Info{}, fmt.Errorf("make layer directory: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return layer.Info{}, fmt.Errorf("make layer directory: %w", err)
	}
	rc, err := b.open()
	if err != nil {
		return layer.Info{}, err
	}
	defer func() { _ = rc.Close() }()
	counted := &progressReader{r: rc, p: p, report: report}
	whole := sha256.New()
	raw := io.TeeReader(counted, whole)
	plain, _, err := decompress(raw)
	if err != nil {
		return layer.Info{}, b.explain(err, raw, whole)
	}
	defer func() { _ = plain.Close() }()
	content := sha256.New()
	done, err := layer.Unpack(ctx, dir, io.TeeReader(plain, content), lowers, s.Limits)
	if err != nil {
		return layer.Info{}, b.explain(err, raw, whole)
	}
	if got := "sha256:" + hex.EncodeToString(content.Sum(nil)); got != diffID {
		return layer.Info{}, fmt.Errorf("content has digest %s instead of %s: the image is damaged or was tampered with", got, diffID)
	}
	if done.Dropped > 0 && s.Log != nil {
		s.Log.Warn("layer has extended attributes that are not kept", "layer", diffID, "count", done.Dropped)
	}
	counted.flush()
	return done, nil
}

// explain tells of a layer that cannot be unpacked whether its blob is to
// blame: whether what was read and the rest do not have the blob's digest.
func (b blob) explain(err error, rest io.Reader, read hash.Hash) error {
	var errno unix.Errno
	if b.digest == "" || errors.As(err, &errno) || errors.Is(err, context.Canceled) {
		return err
	}
	if _, cerr := io.Copy(io.Discard, rest); cerr != nil {
		return err
	}
	if got := "sha256:" + hex.EncodeToString(read.Sum(nil)); got != b.digest {
		return fmt.Errorf("blob %s is damaged: its digest is %s: %w", b.digest, got, err)
	}
	return err
}

// commitLayer gives an unpacked layer its name.
func (s *Store) commitLayer(tmp string, l *Layer, done layer.Info) error {
	rec, err := json.Marshal(layerRecord{DiffID: l.DiffID, Bytes: done.Bytes, Entries: done.Entries, Implied: done.Implied})
	if err != nil {
		return fmt.Errorf("encode layer record: %w", err)
	}
	if err := os.WriteFile(filepath.Join(tmp, "layer.json"), rec, 0o600); err != nil {
		return fmt.Errorf("write layer record: %w", err)
	}
	d, err := os.Open(tmp)
	if err != nil {
		return fmt.Errorf("sync layer: %w", err)
	}
	err = unix.Syncfs(int(d.Fd()))
	_ = d.Close()
	if err != nil {
		return fmt.Errorf("sync layer: %w", err)
	}
	if err := os.Rename(tmp, s.path("layers", "sha256", l.Key[len("sha256:"):])); err != nil {
		return fmt.Errorf("place layer: %w", err)
	}
	return nil
}

// progressReader counts what is read and reports it every now and then.
type progressReader struct {
	r      io.Reader
	p      Progress
	last   int64
	report func(Progress)
}

func (r *progressReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.p.Done += int64(n)
	if r.p.Done-r.last >= 256<<10 {
		r.flush()
	}
	return n, err
}

func (r *progressReader) flush() {
	r.last = r.p.Done
	if r.report != nil {
		r.report(r.p)
	}
}
