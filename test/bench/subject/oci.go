package subject

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/test/testimage"
)

// bundles makes bundles with one root file system, which is read-only.
type bundles struct {
	rig      *Rig
	rootfs   string
	template []byte // what `runc spec` writes
}

func newBundles(ctx context.Context, r *Rig) (*bundles, error) {
	if _, err := exec.LookPath("runc"); err != nil {
		return nil, errors.New("bundles are made by `runc spec`, and runc is not installed: apt-get install runc")
	}
	b := &bundles{rig: r, rootfs: filepath.Join(r.dir, "rootfs")}
	if err := testimage.Unpack(ctx, r.image, b.rootfs); err != nil {
		return nil, fmt.Errorf("unpack the image: %w", err)
	}
	dir := filepath.Join(r.dir, "template")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := finish(exec.CommandContext(ctx, "runc", "spec", "--bundle", dir)); err != nil {
		return nil, err
	}
	var err error
	b.template, err = os.ReadFile(filepath.Join(dir, "config.json"))
	return b, err
}

// make makes a bundle of what `runc spec` writes, with a command, the volume and
// a cgroup of the rig's.
func (b *bundles) make(id string, command []string) (string, error) {
	var spec specs.Spec
	if err := json.Unmarshal(b.template, &spec); err != nil {
		return "", fmt.Errorf("what runc spec writes: %w", err)
	}
	spec.Root.Path = b.rootfs
	spec.Process.Args, spec.Process.Terminal = command, false
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: Volume, Type: "bind", Source: b.rig.volume(), Options: []string{"bind", "rw"}})
	spec.Linux.CgroupsPath = "/" + b.rig.name() + "/oci/" + id
	data, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(b.rig.dir, "bundles", id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600)
}

// oci is a runtime's own command line.
type oci struct {
	*bundles
	tool tool
	root string // of its state
}

// command prepares one of the runtime, kata's or another.
func (o *oci) command(ctx context.Context, args ...string) *exec.Cmd {
	args = append([]string{"--root", o.root}, args...)
	if o.tool.env != nil {
		return o.tool.env.Command(ctx, "kata-runtime", args...)
	}
	return exec.CommandContext(ctx, o.tool.binary, args...)
}

// leave runs a command that leaves a container running, which has its output: a
// file of the bundle, as a pipe would stay open as long as the container.
func (o *oci) leave(ctx context.Context, dir string, args ...string) error {
	said, err := os.OpenFile(filepath.Join(dir, "said"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer said.Close()
	cmd := o.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(said.Name())
		return fmt.Errorf("%s: %w: %s", oneLine(cmd.String()), err, text)
	}
	return nil
}

func (o *oci) once(ctx context.Context) (Start, error) {
	id := o.rig.next()
	dir, err := o.make(id, []string{"echo", "started"})
	if err != nil {
		return Start{}, err
	}
	return runOnce(o.command(ctx, "run", "--bundle", dir, id))
}

func (o *oci) stay(ctx context.Context) (Container, error) {
	c := &ociContainer{o, o.rig.next()}
	dir, err := o.make(c.id, []string{"sleep", "100000"})
	if err != nil {
		return nil, err
	}
	return c, o.leave(ctx, dir, "run", "--detach", "--bundle", dir, c.id)
}

// ociContainer is one of `run --detach`.
type ociContainer struct {
	*oci
	id string
}

// Exec implements [Container].
func (c *ociContainer) Exec(ctx context.Context, out io.Writer, command ...string) error {
	return copyOutput(c.command(ctx, append([]string{"exec", c.id}, command...)...), out)
}

// Remove implements [Container].
func (c *ociContainer) Remove(ctx context.Context) error {
	return finish(c.command(context.WithoutCancel(ctx), "delete", "--force", c.id))
}
