package containerd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/test/daemon"
	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// Daemon is a running containerd.
type Daemon struct {
	Release Release
	Network *Network
	// Address is the path of the socket, State and Root are containerd's
	// directories, Fifos is where clients make pipes.
	Address, State, Root, Fifos string
	// Config is the path of its configuration, which may be changed between
	// Stop and Start.
	Config string
	// CgroupParent is where containers and pods have to go, so that what is
	// left there is seen. Nothing else is in it.
	CgroupParent string

	env *harness.Env
	// process is containerd, nil while it does not run.
	process *daemon.Process
}

// New prepares a containerd in directories of its own, which are called name and
// go with env's. The programs are looked for in the release's directory and in
// env's, and env's configuration is used for kata.
func New(env *harness.Env, r Release, n *Network, name string) (*Daemon, error) {
	state, data := filepath.Join(filepath.Dir(env.State), name), filepath.Join(filepath.Dir(env.Data), name)
	d := &Daemon{
		Release: r, Network: n, env: env,
		Address: filepath.Join(state, "sock"), State: filepath.Join(state, "state"), Fifos: filepath.Join(state, "fifo"),
		Root: filepath.Join(data, "root"), Config: filepath.Join(data, "config.toml"),
		CgroupParent: "/" + filepath.Base(filepath.Dir(env.State)) + "-" + name,
	}
	for _, dir := range []string{d.State, d.Root, d.Fifos, filepath.Join(data, "opt")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, err
		}
	}
	conf, err := d.config()
	if err != nil {
		return nil, err
	}
	env.Watch(d.look)
	return d, os.WriteFile(d.Config, []byte(conf), 0o600)
}

// Start starts it and waits until it answers. It may be called again after Stop
// or Kill.
func (d *Daemon) Start(ctx context.Context) error {
	// Not `ip netns exec`, which hides the cgroups of version 1.
	cmd := exec.Command("nsenter", "--net="+d.Network.Path, filepath.Join(d.Release.Dir, "containerd"), "--config", d.Config)
	cmd.Env = append(os.Environ(), "PATH="+d.path(), "KATA_CONF_FILE="+d.env.Config)
	p, err := daemon.Start(cmd, "containerd "+d.Release.Name, d.LogFile())
	if err != nil {
		return err
	}
	d.process = p
	return p.Ready(ctx, func(ctx context.Context) ([]byte, error) { return d.Ctr(ctx, "version").CombinedOutput() })
}

// path is PATH for the daemon and its shims: our programs first.
func (d *Daemon) path() string {
	return strings.Join([]string{d.env.Bin, d.Release.Dir, os.Getenv("PATH")}, ":")
}

// Pid is containerd's.
func (d *Daemon) Pid() int { return d.process.Pid() }

// LogFile is the path of what containerd says.
func (d *Daemon) LogFile() string { return filepath.Join(filepath.Dir(d.Config), "log") }

// Log returns the last of what containerd has said that was more than a remark.
func (d *Daemon) Log() string { return daemon.Said(d.LogFile()) }

// Stop ends containerd in good order. Shims go on.
func (d *Daemon) Stop() error { return d.end(unix.SIGTERM) }

// Kill ends it at once.
func (d *Daemon) Kill() error { return d.end(unix.SIGKILL) }

func (d *Daemon) end(sig unix.Signal) error {
	if d.process == nil {
		return nil
	}
	if err := d.process.End(sig); err != nil {
		return err
	}
	d.process = nil
	return nil
}

// Ctr prepares a command of ctr.
func (d *Daemon) Ctr(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(d.Release.Dir, "ctr"), append([]string{"--address", d.Address}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+d.path(), "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1")
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// Import makes a test image known as localhost/NAME:latest, to ctr and to the
// CRI.
func (d *Daemon) Import(ctx context.Context, name string) (string, error) {
	ref, err := harness.Image(ctx, name)
	if err != nil {
		return "", err
	}
	return d.ImportLayout(ctx, strings.TrimPrefix(ref, "oci:"), name)
}

// ImportLayout is Import for the only image of the OCI layout in a directory.
func (d *Daemon) ImportLayout(ctx context.Context, dir, name string) (string, error) {
	for _, namespace := range []string{"default", "k8s.io"} {
		var archive bytes.Buffer
		full := "localhost/" + name + ":latest"
		if err := writeArchive(&archive, dir, full); err != nil {
			return "", fmt.Errorf("archive of image %s: %w", name, err)
		}
		cmd := d.Ctr(ctx, "--namespace", namespace, "images", "import", "-")
		cmd.Stdin = &archive
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("import image %s: %w: %s", name, err, out)
		}
	}
	return "localhost/" + name + ":latest", nil
}
