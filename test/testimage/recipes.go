package testimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// suite is the Debian release that images are made of.
const suite = "bookworm"

func recipes() []recipe {
	return []recipe{
		{
			name:   "busybox",
			config: v1.Config{Env: []string{path}, Cmd: []string{"sh"}},
			inputs: busyboxFiles,
			write:  writeBusybox,
		},
		{
			name:    "debian",
			config:  v1.Config{Env: []string{path}, Cmd: []string{"bash"}},
			zstd:    true, // so that this compression is tested as well
			command: debootstrap(),
		},
		{
			name: "nginx",
			config: v1.Config{
				Env:          []string{path},
				Cmd:          []string{"nginx", "-g", "daemon off;"},
				ExposedPorts: map[string]struct{}{"80/tcp": {}},
				StopSignal:   "SIGQUIT",
			},
			command: debootstrap(
				"--include=nginx-light",
				`--customize-hook=ln -sf /dev/stdout "$1"/var/log/nginx/access.log`,
				`--customize-hook=ln -sf /dev/stderr "$1"/var/log/nginx/error.log`,
			),
		},
		{
			name:   "pause",
			config: v1.Config{Entrypoint: []string{"/pause"}, User: "65534:65534"},
			inputs: compiler,
			source: pauseSource,
			write:  writePause,
		},
	}
}

// debootstrap returns the command that prints a minimal Debian system as a tar.
func debootstrap(extra ...string) []string {
	args := []string{"mmdebstrap", "--quiet", "--mode=root", "--variant=essential", "--format=tar"}
	for _, dir := range []string{"man", "doc", "locale", "info"} {
		args = append(args, "--dpkgopt=path-exclude=/usr/share/"+dir+"/*")
	}
	return append(append(args, extra...), suite, "-")
}

// layerOptions says how the layer is compressed: fast, as it stays on this machine.
func (r recipe) layerOptions() []tarball.LayerOption {
	options := []tarball.LayerOption{tarball.WithCompressedCaching, tarball.WithCompressionLevel(1)}
	if r.zstd {
		return append(options, tarball.WithCompression(compression.ZStd), tarball.WithMediaType(types.OCILayerZStd))
	}
	return append(options, tarball.WithMediaType(types.OCILayer))
}

// writeLayer writes the layer's uncompressed tar to the file.
func (r recipe) writeLayer(ctx context.Context, tarFile string) (err error) {
	out, err := os.OpenFile(tarFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if len(r.command) == 0 {
		files, err := r.inputs()
		if err != nil {
			return err
		}
		return r.write(ctx, out, files)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, r.command[0], r.command[1:]...)
	cmd.Stdout, cmd.Stderr = out, &stderr
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(epoch().Unix(), 10))
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", r.command[0], err, stderr.Bytes())
	}
	return nil
}
