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
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/test/harness"
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
	if err := unpack(ctx, r.image, b.rootfs); err != nil {
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
}

// command prepares one of the runtime, kata's or another.
func (o *oci) command(ctx context.Context, args ...string) *exec.Cmd {
	if o.tool.env != nil {
		return o.tool.env.Command(ctx, "kata-runtime", args...)
	}
	return exec.CommandContext(ctx, o.tool.binary, append([]string{"--root", o.rig.roots(o.tool)}, args...)...)
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
	c := &ociContainer{oci: o, id: o.rig.next()}
	if o.tool.env != nil {
		return c, c.attach(ctx)
	}
	dir, err := o.make(c.id, []string{"sleep", "100000"})
	if err != nil {
		return nil, err
	}
	// A pipe would stay open as long as the container: what it says goes to a file.
	said, err := os.OpenFile(filepath.Join(dir, "said"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer said.Close()
	cmd := o.command(ctx, "run", o.tool.detach, "--bundle", dir, c.id)
	cmd.Stderr = said
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(said.Name())
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, text)
	}
	return c, nil
}

// ociContainer is one of `run --detach`, or of `kata-runtime run`, whose process
// stays beside it.
type ociContainer struct {
	*oci
	id    string
	run   *exec.Cmd
	stdin io.Closer
}

// attach starts a container that ends with its input.
func (c *ociContainer) attach(ctx context.Context) error {
	dir, err := c.make(c.id, []string{"sh", "-c", "echo started; exec cat"})
	if err != nil {
		return err
	}
	c.run = c.command(context.WithoutCancel(ctx), "run", "--bundle", dir, c.id)
	var said harness.Buffer
	c.run.Stderr = &said
	if c.stdin, err = c.run.StdinPipe(); err != nil {
		return err
	}
	out, err := c.run.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.run.Start(); err != nil {
		return err
	}
	if n, err := out.Read(make([]byte, 16)); n == 0 {
		_ = out.Close()
		err = errors.Join(err, c.stdin.Close(), c.run.Wait())
		return fmt.Errorf("kata-runtime run: %w: %s", err, said.String())
	}
	return nil
}

// Exec implements [Container].
func (c *ociContainer) Exec(ctx context.Context, out io.Writer, command ...string) error {
	return copyOutput(c.command(ctx, append([]string{"exec", c.id}, command...)...), out)
}

// Remove implements [Container].
func (c *ociContainer) Remove(ctx context.Context) error {
	if c.run != nil {
		return errors.Join(c.stdin.Close(), c.run.Wait())
	}
	return finish(c.command(context.WithoutCancel(ctx), "delete", "--force", c.id))
}
