package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxArchiveFiles is the number of files in an archive, which has a few per
// layer.
const maxArchiveFiles = 10000

// span is where a file's content stands in an archive.
type span struct{ offset, size int64 }

// archiveSource finds an image in a tar file made by `docker save`, `skopeo
// copy` and the like: an OCI layout, or Docker's older form.
func archiveSource(ctx context.Context, ref reference, tmp string, opts PullOptions) (_ *source, err error) {
	f, err := openArchive(ctx, ref.path, tmp)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.name, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	spans, err := indexArchive(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.name, err)
	}
	open := files(func(name string) (io.ReadCloser, int64, error) {
		s, ok := spans[path.Clean(name)]
		if !ok {
			return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		return io.NopCloser(io.NewSectionReader(f, s.offset, s.size)), s.size, nil
	})
	var src *source
	if _, ok := spans[imagespec.ImageIndexFile]; ok {
		src, err = layoutSource(open, ref, opts)
	} else {
		src, err = dockerSource(open, ref)
	}
	if err != nil {
		return nil, err
	}
	src.close = f.Close
	return src, nil
}

// openArchive opens a tar file; a compressed one is first unpacked into an
// unnamed file in tmp, since layers are read in another order than they stand.
func openArchive(ctx context.Context, file, tmp string) (*os.File, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		_ = f.Close()
		return nil, fmt.Errorf("%s is not a regular file", file)
	}
	r, compressed, err := decompress(f)
	if err == nil && !compressed {
		_ = r.Close()
		_, err = f.Seek(0, io.SeekStart)
		if err == nil {
			return f, nil
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	defer func() { _ = f.Close() }()
	defer func() { _ = r.Close() }()
	out, err := os.CreateTemp(tmp, "archive-")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(out.Name())
	stop := context.AfterFunc(ctx, func() { _ = f.Close() }) // ends the copy
	defer stop()
	limit := Limits{}.WithDefaults().Bytes
	n, err := io.Copy(out, io.LimitReader(r, limit+1))
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case err == nil && n > limit:
		err = fmt.Errorf("more than %d bytes", limit)
	}
	if err != nil {
		_ = out.Close()
		return nil, fmt.Errorf("decompress %s: %w", file, err)
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		_ = out.Close()
		return nil, err
	}
	return out, nil
}

// indexArchive finds the regular files of a tar file. f's offset is moved.
func indexArchive(ctx context.Context, f *os.File) (map[string]span, error) {
	spans := make(map[string]span)
	links := make(map[string]string)
	tr := tar.NewReader(f)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("not a tar file that can be read: %w", err)
		}
		if len(spans)+len(links) >= maxArchiveFiles {
			return nil, fmt.Errorf("archive has more than %d files", maxArchiveFiles)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			// The reader has read no more than the header.
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			spans[name] = span{offset: at, size: h.Size}
		case tar.TypeSymlink: // docker save does so for equal layers
			links[name] = path.Join(path.Dir(name), h.Linkname) //nolint:gosec // only compared with other names
		case tar.TypeLink:
			links[name] = path.Clean(h.Linkname)
		}
	}
	for name, target := range links {
		if s, ok := spans[target]; ok {
			spans[name] = s
		}
	}
	return spans, nil
}

// dockerManifest is an element of manifest.json of a Docker archive.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func dockerSource(open files, ref reference) (*source, error) {
	fail := func(err error) (*source, error) { return nil, fmt.Errorf("image %s: %w", ref.name, err) }
	data, err := open.readAll("manifest.json")
	if err != nil {
		return fail(fmt.Errorf("neither an OCI nor a Docker archive: %w", err))
	}
	var all []dockerManifest
	if err := json.Unmarshal(data, &all); err != nil {
		return fail(fmt.Errorf("parse manifest.json: %w", err))
	}
	var tags []string
	var found []dockerManifest
	for _, m := range all {
		tags = append(tags, m.RepoTags...)
		if ref.tag == "" || slices.ContainsFunc(m.RepoTags, func(t string) bool {
			return t == ref.tag || strings.HasSuffix(t, ":"+ref.tag)
		}) {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		return fail(fmt.Errorf("archive has %d images that fit, add one of their tags: %q", len(found), tags))
	}
	m := found[0]
	if len(m.Layers) > maxLayers {
		return fail(fmt.Errorf("image has %d layers, at most %d are supported", len(m.Layers), maxLayers))
	}
	config, err := open.readAll(m.Config)
	if err != nil {
		return fail(err)
	}
	src := &source{name: ref.name, config: config}
	for _, l := range m.Layers {
		rc, size, err := open(l)
		if err != nil {
			return fail(fmt.Errorf("layer: %w", err))
		}
		_ = rc.Close()
		src.layers = append(src.layers, blob{size: size, open: func() (io.ReadCloser, error) {
			rc, _, err := open(l)
			return rc, err
		}})
	}
	return src, nil
}
