package main

import (
	"archive/tar"
	"bytes"
	"context"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/seed-efd44b36/kata/test/testimage"
)

// image is one that the suites use.
type image struct {
	v1.Image
	// key and digestKey are its names in the suites' lists of images.
	key, digestKey string
}

// images returns what stands for the images that the suites use, by their names
// there. All are made of the test image "busybox", but for "pause".
func images(ctx context.Context) (map[string]image, error) {
	dir, err := testimage.CacheDir()
	if err != nil {
		return nil, err
	}
	base := map[string]v1.Image{}
	for _, name := range []string{"busybox", "pause"} {
		path, err := testimage.Build(ctx, dir, name)
		if err != nil {
			return nil, err
		}
		if base[name], err = testimage.Read(path); err != nil {
			return nil, err
		}
	}
	// The suites know some users by the numbers that they have everywhere.
	const passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nsys:x:3:3:sys:/dev:/bin/false\n" +
		"www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
	const group = "root:x:0:\ndaemon:x:1:\nsys:x:3:\nwheel:x:10:root\nwww-data:x:33:\nnogroup:x:65534:\n"
	busybox, err := derive(base["busybox"], v1.Config{}, entry{name: "etc/passwd", data: passwd}, entry{name: "etc/group", data: group})
	if err != nil {
		return nil, err
	}
	alpine, err := derive(busybox, v1.Config{}, entry{name: "etc/os-release", data: "NAME=\"Alpine Linux\"\nID=alpine\n"})
	if err != nil {
		return nil, err
	}
	copyUp, err := derive(busybox, v1.Config{Volumes: map[string]struct{}{"/test_dir": {}, "C:/weird_test_dir": {}, "/:colon_prefixed": {}}},
		entry{name: "test_dir/"}, entry{name: "test_dir/test_file", data: "test_content\n"},
		entry{name: "C:/"}, entry{name: "C:/weird_test_dir/"}, entry{name: "C:/weird_test_dir/weird_test_file", data: "test_content\n"},
		entry{name: ":colon_prefixed/"}, entry{name: ":colon_prefixed/colon_prefixed_file", data: "test_content\n"})
	if err != nil {
		return nil, err
	}
	const nobody = 65534
	ownership, err := derive(busybox, v1.Config{Volumes: map[string]struct{}{"/test_dir": {}}}, entry{name: "test_dir/", owner: nobody})
	if err != nil {
		return nil, err
	}
	// Of stress(1) the suite uses one mode: hold 100 MiB for 30 seconds, as dd
	// does that cannot write.
	const stress = "#!/bin/sh\ndd if=/dev/zero bs=110M count=1 | sleep 30\n"
	consumer, err := derive(busybox, v1.Config{Cmd: []string{"sleep", "inf"}}, entry{name: "bin/stress", data: stress, mode: 0o755})
	if err != nil {
		return nil, err
	}
	return map[string]image{
		"ghcr.io/containerd/alpine:3.14.0":                       {Image: alpine, key: "alpine"},
		"ghcr.io/containerd/busybox:1.36":                        {Image: busybox, key: "busybox", digestKey: "BusyBoxByDigest"},
		"registry.k8s.io/e2e-test-images/busybox:1.29-2":         {Image: busybox},
		"registry.k8s.io/pause:3.10.2":                           {Image: base["pause"], key: "pause"},
		"registry.k8s.io/e2e-test-images/resource-consumer:1.10": {Image: consumer, key: "ResourceConsumer"},
		"ghcr.io/containerd/volume-copy-up:2.2":                  {Image: copyUp, key: "VolumeCopyUp"},
		"ghcr.io/containerd/volume-ownership:2.1":                {Image: ownership, key: "VolumeOwnership"},
		"ghcr.io/containerd/nginx:1.27.0":                        {Image: busybox, key: "Nginx"},
	}, nil
}

// entry is a file, or with a slash at its end a directory.
type entry struct {
	name, data string
	mode       int64
	owner      int
}

// derive adds a layer with the entries to the image, and to its configuration
// the volumes and the command.
func derive(base v1.Image, config v1.Config, entries ...entry) (v1.Image, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: 0o644, Size: int64(len(e.data)), Uid: e.owner, Gid: e.owner}
		if e.mode != 0 {
			h.Mode = e.mode
		}
		if e.name[len(e.name)-1] == '/' {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	derived, err := mutate.AppendLayers(base, layer)
	if err != nil {
		return nil, err
	}
	file, err := derived.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Config.Volumes = config.Volumes
	if config.Cmd != nil {
		file.Config.Cmd = config.Cmd
	}
	return mutate.ConfigFile(derived, file)
}
