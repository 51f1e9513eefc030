package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

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
	cmd *exec.Cmd
	// exited gets how the process ended, for one who asks.
	exited chan error
}

// readyTimeout is for a busy machine: one that is quiet needs half a second.
const readyTimeout = time.Minute

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
	// Opened for appending: a daemon that is started again goes on with it.
	log, err := os.OpenFile(d.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	// Not `ip netns exec`, which hides the cgroups of version 1.
	d.cmd = exec.Command("nsenter", "--net="+d.Network.Path, filepath.Join(d.Release.Dir, "containerd"), "--config", d.Config)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Env = append(os.Environ(), "PATH="+d.path(), "KATA_CONF_FILE="+d.env.Config)
	d.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := d.cmd.Start(); err != nil {
		return fmt.Errorf("start containerd %s: %w", d.Release.Name, err)
	}
	exited := make(chan error, 1)
	d.exited = exited
	go func() { exited <- d.cmd.Wait() }() // Stop and Kill wait for it
	return d.ready(ctx)
}

func (d *Daemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		out, err := d.Ctr(ctx, "version").CombinedOutput()
		if err == nil {
			return nil
		}
		select {
		case end := <-d.exited:
			d.exited <- end
			return fmt.Errorf("containerd %s ended: %w\n%s", d.Release.Name, end, d.Log())
		case <-ctx.Done():
			return fmt.Errorf("containerd %s does not answer: %w: %s\n%s", d.Release.Name, err, out, d.Log())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// path is PATH for the daemon and its shims: our programs first.
func (d *Daemon) path() string {
	return strings.Join([]string{d.env.Bin, d.Release.Dir, os.Getenv("PATH")}, ":")
}

// Pid is containerd's.
func (d *Daemon) Pid() int { return d.cmd.Process.Pid }

// LogFile is the path of what containerd says.
func (d *Daemon) LogFile() string { return filepath.Join(filepath.Dir(d.Config), "log") }

// Log returns the last of what containerd has said that was more than a remark.
func (d *Daemon) Log() string {
	const most = 8 << 10
	b, err := os.ReadFile(d.LogFile())
	if err != nil {
		return err.Error()
	}
	var said strings.Builder
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, "level=info") && !strings.Contains(line, "level=debug") {
			said.WriteString(line)
		}
	}
	return said.String()[max(0, said.Len()-most):]
}

// Stop ends containerd in good order. Shims go on.
func (d *Daemon) Stop() error { return d.end(unix.SIGTERM) }

// Kill ends it at once.
func (d *Daemon) Kill() error { return d.end(unix.SIGKILL) }

func (d *Daemon) end(sig unix.Signal) error {
	if d.exited == nil {
		return nil
	}
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end containerd %s: %w", d.Release.Name, err)
	}
	select {
	case end := <-d.exited:
		d.exited = nil
		if _, ok := errors.AsType[*exec.ExitError](end); end != nil && !ok {
			return fmt.Errorf("wait for containerd %s: %w", d.Release.Name, end)
		}
		return nil
	case <-time.After(readyTimeout):
		return fmt.Errorf("containerd %s does not end:\n%s", d.Release.Name, d.Log())
	}
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
