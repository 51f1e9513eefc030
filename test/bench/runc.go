package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// runc runs the same image beside.
type runc struct{ root, bundle string }

// newRunc returns nil when runc is not installed.
func newRunc(ctx context.Context, b *bench) (*runc, error) {
	if _, err := exec.LookPath("runc"); err != nil {
		return nil, nil //nolint:nilnil,nilerr // its column stays empty
	}
	r := &runc{root: filepath.Join(filepath.Dir(b.env.State), "runc"), bundle: filepath.Join(b.dir, "bundle")}
	rootfs := filepath.Join(r.bundle, "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return nil, err
	}
	if err := unpack(ctx, strings.TrimPrefix(b.image, "oci:"), rootfs); err != nil {
		return nil, fmt.Errorf("unpack the image for runc: %w", err)
	}
	hello, err := os.ReadFile(filepath.Join(b.volume(), "hello"))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(rootfs, "bench"), 0o755); err != nil {
		return nil, err
	}
	return r, os.WriteFile(filepath.Join(rootfs, "bench", "hello"), hello, 0o755)
}

// unpack writes the files of the only image of the layout into dir.
func unpack(ctx context.Context, layoutDir, dir string) error {
	index, err := layout.ImageIndexFromPath(layoutDir)
	if err != nil {
		return err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return err
	}
	if len(m.Manifests) != 1 {
		return fmt.Errorf("%d images, want 1", len(m.Manifests))
	}
	image, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		return err
	}
	files := mutate.Extract(image)
	defer files.Close()
	tar := exec.CommandContext(ctx, "tar", "-xp", "--numeric-owner", "-C", dir)
	tar.Stdin = files
	if out, err := tar.CombinedOutput(); err != nil {
		return fmt.Errorf("tar: %w: %s", err, out)
	}
	return nil
}

// configure writes config.json: what `runc spec` writes, with the command.
func (r *runc) configure(ctx context.Context, command []string) error {
	path := filepath.Join(r.bundle, "config.json")
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "runc", "spec", "--bundle", r.bundle).CombinedOutput(); err != nil {
		return fmt.Errorf("runc spec: %w: %s", err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]json.RawMessage
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	var process map[string]json.RawMessage
	if err := json.Unmarshal(spec["process"], &process); err != nil {
		return err
	}
	args, err := json.Marshal(command)
	if err != nil {
		return err
	}
	process["args"], process["terminal"] = args, json.RawMessage("false")
	if spec["process"], err = json.Marshal(process); err != nil {
		return err
	}
	if data, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

func (r *runc) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "runc", append([]string{"--root", r.root}, args...)...)
}

// run prepares a container that runs the command.
func (r *runc) run(ctx context.Context, command ...string) *exec.Cmd {
	cmd := r.command(ctx, "run", "--bundle", r.bundle, "bench-start")
	cmd.Err = errors.Join(cmd.Err, r.configure(ctx, command))
	return cmd
}

// stay starts the container that execs run in.
func (r *runc) stay(ctx context.Context) error {
	if err := r.configure(ctx, []string{"sleep", "100000"}); err != nil {
		return err
	}
	if err := r.command(ctx, "run", "--detach", "--bundle", r.bundle, container).Run(); err != nil {
		return fmt.Errorf("runc run: %w", err)
	}
	return nil
}

func (r *runc) exec(ctx context.Context, command ...string) *exec.Cmd {
	return r.command(ctx, append([]string{"exec", container}, command...)...)
}

func (r *runc) end(ctx context.Context) error {
	if out, err := r.command(ctx, "delete", "--force", container).CombinedOutput(); err != nil {
		return fmt.Errorf("runc delete: %w: %s", err, out)
	}
	return nil
}
