package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxJSON bounds manifests, indexes and configurations, in bytes.
	maxJSON = 4 << 20
	// maxLayers is what Docker allows, too; overlayfs takes 500.
	maxLayers = 127
)

// source is an image that can be unpacked, wherever it comes from.
type source struct {
	// name it gets in the store.
	name string
	// manifest is the digest of the manifest, "" when there is none.
	manifest string
	// config is the configuration as published.
	config []byte
	// layers, the lowest first.
	layers []blob
	close  func() error
}

// blob is a layer as it is stored or sent, compressed or not.
type blob struct {
	digest string // of the blob, "" unknown
	size   int64  // in bytes, 0 unknown
	open   func() (io.ReadCloser, error)
}

// A kind says where a reference leads.
type kind int

const (
	kindRegistry kind = iota
	kindLayout
	kindArchive
)

// reference is a parsed image name.
type reference struct {
	kind kind
	// path of a layout or archive, absolute; tag selects in it, "" if any.
	path, tag string
	// remote is set for kindRegistry.
	remote name.Reference
	name   string
}

// lowerCase is a name as a registry takes it, if it had only to be in lower case.
func lowerCase(s string) string {
	repository, rest := s, ""
	if i := strings.IndexByte(s, '@'); i >= 0 {
		repository, rest = s[:i], s[i:]
	} else if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		repository, rest = s[:i], s[i:]
	}
	lower := strings.ToLower(repository) + rest
	if _, err := name.ParseReference(lower); err != nil {
		return s
	}
	return lower
}

// parseReference understands registry references as Docker does, and
// oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG], and a path
// that starts with "/" or "." of a layout or archive.
func parseReference(s string) (reference, error) {
	scheme, rest, _ := strings.Cut(s, ":")
	switch {
	case scheme == "oci", scheme == "oci-archive", scheme == "docker-archive":
	case strings.HasPrefix(s, "/"), strings.HasPrefix(s, "."):
		rest = s
	default:
		ref, err := name.ParseReference(s)
		if right := lowerCase(s); err != nil && right != s {
			return reference{}, fmt.Errorf("image name %q: it has to be in lower case, but for the tag: %s", s, right)
		}
		if err != nil {
			return reference{}, fmt.Errorf("image name %q: %w", s, err)
		}
		n := ref.Name()
		if tail, ok := strings.CutPrefix(n, "index.docker.io/"); ok {
			n = "docker.io/" + tail
		}
		return reference{kind: kindRegistry, remote: ref, name: n}, nil
	}
	if rest == "" {
		return reference{}, fmt.Errorf("image name %q: no path after %q", s, scheme+":")
	}
	r := reference{path: rest}
	fi, err := os.Stat(r.path)
	if err != nil {
		// A colon may be part of the path; only then, of a tag.
		if i := strings.LastIndexByte(rest, ':'); i > 0 && !strings.Contains(rest[i:], "/") {
			r.path, r.tag = rest[:i], rest[i+1:]
			fi, err = os.Stat(r.path)
		}
	}
	if err != nil {
		return reference{}, fmt.Errorf("image %q: %w", s, err)
	}
	if r.path, err = filepath.Abs(r.path); err != nil {
		return reference{}, fmt.Errorf("image %q: %w", s, err)
	}
	r.kind, r.name = kindArchive, "archive:"+r.path
	if fi.IsDir() {
		r.kind, r.name = kindLayout, "oci:"+r.path
	}
	if r.tag != "" {
		r.name += ":" + r.tag
	}
	return r, nil
}

func openSource(ctx context.Context, ref reference, tmp string, opts PullOptions) (*source, error) {
	switch ref.kind {
	case kindLayout:
		return layoutSource(dirFiles(ref.path), ref, opts)
	case kindArchive:
		return archiveSource(ctx, ref, tmp, opts)
	default:
		return remoteSource(ctx, ref, opts)
	}
}

func remoteSource(ctx context.Context, ref reference, opts PullOptions) (*source, error) {
	platform := v1.Platform{OS: "linux", Architecture: opts.arch()}
	ropts := []remote.Option{
		remote.WithContext(ctx), remote.WithPlatform(platform), remote.WithAuthFromKeychain(authn.DefaultKeychain),
	}
	if opts.Transport != nil {
		ropts = append(ropts, remote.WithTransport(opts.Transport))
	}
	img, err := remote.Image(ref.remote, ropts...)
	if err != nil {
		return nil, explainRemote(ref, err)
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return nil, explainRemote(ref, err)
	}
	m, err := parseManifest(manifest)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.name, err)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, explainRemote(ref, err)
	}
	src := &source{name: ref.name, manifest: digestOf(manifest), config: config, close: func() error { return nil }}
	if err := src.checkConfig(m.Config.Digest.String()); err != nil {
		return nil, err
	}
	for _, d := range m.Layers {
		hash, err := v1.NewHash(d.Digest.String())
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", ref.name, err)
		}
		src.layers = append(src.layers, blob{digest: d.Digest.String(), size: d.Size, open: func() (io.ReadCloser, error) {
			layer, err := img.LayerByDigest(hash)
			if err != nil {
				return nil, explainRemote(ref, err)
			}
			rc, err := layer.Compressed()
			if err != nil {
				return nil, explainRemote(ref, err)
			}
			return rc, nil
		}})
	}
	return src, nil
}

// explainRemote turns a registry's answer into a sentence with a next step.
func explainRemote(ref reference, err error) error {
	if terr, ok := errors.AsType[*transport.Error](err); ok {
		switch terr.StatusCode {
		case http.StatusNotFound:
			return fmt.Errorf("image %s: %w in the registry; check the name and the tag: %w", ref.name, ErrNotFound, err)
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("image %s: it does not exist or needs a login (`docker login %s` or `podman login`): %w",
				ref.name, ref.remote.Context().RegistryStr(), err)
		case http.StatusTooManyRequests:
			return fmt.Errorf("image %s: the registry limits its use; log in or try again later: %w", ref.name, err)
		}
	}
	return fmt.Errorf("image %s: %w", ref.name, err)
}

// files opens the files of an image layout by their slash-separated names.
// The size is that of the file.
type files func(name string) (rc io.ReadCloser, size int64, err error)

// dirFiles opens below a directory, and nothing outside of it.
func dirFiles(dir string) files {
	return func(name string) (io.ReadCloser, int64, error) {
		f, err := os.OpenInRoot(dir, filepath.FromSlash(name))
		if err != nil {
			return nil, 0, err
		}
		fi, err := f.Stat()
		if err == nil && !fi.Mode().IsRegular() {
			err = fmt.Errorf("%s is not a regular file", name)
		}
		if err != nil {
			_ = f.Close()
			return nil, 0, err
		}
		return f, fi.Size(), nil
	}
}

// readAll reads a small file of the image.
func (open files) readAll(name string) ([]byte, error) {
	rc, _, err := open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rc.Close() }()
	data, err := io.ReadAll(io.LimitReader(rc, maxJSON+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(data) > maxJSON {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxJSON)
	}
	return data, nil
}

// readBlob reads a small blob and compares its digest.
func (open files) readBlob(digest string) ([]byte, error) {
	file, err := blobFile(digest)
	if err != nil {
		return nil, err
	}
	data, err := open.readAll(file)
	if err != nil {
		return nil, err
	}
	if got := digestOf(data); got != digest {
		return nil, fmt.Errorf("blob %s is damaged: its digest is %s", digest, got)
	}
	return data, nil
}

// layoutSource finds an image in an OCI layout.
func layoutSource(open files, ref reference, opts PullOptions) (*source, error) {
	fail := func(err error) (*source, error) { return nil, fmt.Errorf("image %s: %w", ref.name, err) }
	data, err := open.readAll(imagespec.ImageIndexFile)
	if err != nil {
		return fail(fmt.Errorf("not an OCI image layout: %w", err))
	}
	var index imagespec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return fail(fmt.Errorf("parse index.json: %w", err))
	}
	desc, err := pick(index.Manifests, ref.tag)
	if err != nil {
		return fail(err)
	}
	// An index may lead to another one, for example one per platform.
	for range 4 {
		data, err = open.readBlob(desc.Digest.String())
		if err != nil {
			return fail(err)
		}
		index = imagespec.Index{}
		if err := json.Unmarshal(data, &index); err != nil {
			return fail(fmt.Errorf("parse manifest %s: %w", desc.Digest, err))
		}
		if len(index.Manifests) == 0 {
			break
		}
		if desc, err = pickPlatform(index.Manifests, opts.arch()); err != nil {
			return fail(err)
		}
	}
	m, err := parseManifest(data)
	if err != nil {
		return fail(err)
	}
	config, err := open.readBlob(m.Config.Digest.String())
	if err != nil {
		return fail(err)
	}
	src := &source{name: ref.name, manifest: desc.Digest.String(), config: config, close: func() error { return nil }}
	for _, d := range m.Layers {
		file, err := blobFile(d.Digest.String())
		if err != nil {
			return fail(err)
		}
		src.layers = append(src.layers, blob{digest: d.Digest.String(), size: d.Size, open: func() (io.ReadCloser, error) {
			rc, _, err := open(file)
			return rc, err
		}})
	}
	return src, nil
}

// pick chooses a manifest by its tag annotation.
func pick(from []imagespec.Descriptor, tag string) (imagespec.Descriptor, error) {
	var tags []string
	for _, d := range from {
		name := d.Annotations[imagespec.AnnotationRefName]
		if tag != "" && (name == tag || strings.HasSuffix(name, ":"+tag)) {
			return d, nil
		}
		tags = append(tags, name)
	}
	switch {
	case tag == "" && len(from) == 1:
		return from[0], nil
	case len(from) == 0:
		return imagespec.Descriptor{}, errors.New("layout contains no image")
	case tag == "":
		return imagespec.Descriptor{}, fmt.Errorf("layout contains %d images, add one of their tags: %q", len(from), tags)
	}
	return imagespec.Descriptor{}, fmt.Errorf("%w: no tag %q in the layout, it has %q", ErrNotFound, tag, tags)
}

func pickPlatform(from []imagespec.Descriptor, arch string) (imagespec.Descriptor, error) {
	var have []string
	for _, d := range from {
		if d.Platform == nil {
			if len(from) == 1 {
				return d, nil
			}
			continue
		}
		if d.Platform.OS == "linux" && d.Platform.Architecture == arch {
			return d, nil
		}
		have = append(have, d.Platform.OS+"/"+d.Platform.Architecture)
	}
	return imagespec.Descriptor{}, fmt.Errorf("no image for linux/%s, only for %q", arch, have)
}

func parseManifest(data []byte) (imagespec.Manifest, error) {
	var m imagespec.Manifest
	if len(data) > maxJSON {
		return m, fmt.Errorf("manifest is larger than %d bytes", maxJSON)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("parse manifest: %w", err)
	}
	if m.Config.Digest == "" {
		return m, errors.New("manifest names no configuration; this is not a container image")
	}
	if m.Config.Size > maxJSON {
		return m, fmt.Errorf("configuration is larger than %d bytes", maxJSON)
	}
	if len(m.Layers) > maxLayers {
		return m, fmt.Errorf("image has %d layers, at most %d are supported", len(m.Layers), maxLayers)
	}
	return m, nil
}

func (s *source) checkConfig(want string) error {
	if got := digestOf(s.config); got != want {
		return fmt.Errorf("image %s: configuration has digest %s instead of %s", s.name, got, want)
	}
	return nil
}

func (o PullOptions) arch() string {
	if o.Arch != "" {
		return o.Arch
	}
	return runtime.GOARCH
}
