package engines

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/seed-efd44b36/kata/test/daemon"
	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// Docker is a running dockerd, with a containerd of its own.
type Docker struct {
	Engine

	env    *harness.Env
	name   string
	run    string // directory of sockets and what runs
	data   string // directory of images and containers
	config string
	// process is dockerd.
	process *daemon.Process
}

// dockerProgram is Debian's client, for daemons of all releases. One of another
// origin may come first in PATH.
const dockerProgram = "/usr/bin/docker"

// DockerOptions say how a daemon differs from the others.
type DockerOptions struct {
	// Name is for its directories.
	Name string
	// Release is which Docker it is.
	Release Release
	// Runtime is the runtime of containers, runc without a word. `kata` is what
	// `kata install docker` puts into the configuration.
	Runtime string
	// Shim is a program that takes the place of the shim of runc, for a Docker that
	// can use no other by its name.
	Shim string
}

// StartDocker starts a daemon in directories that go with env's.
func StartDocker(ctx context.Context, env *harness.Env, o DockerOptions) (_ *Docker, err error) {
	d := &Docker{env: env}
	// A test may run more than once, and its daemons with it.
	if d.run, err = os.MkdirTemp(filepath.Dir(env.State), o.Name+"-"); err != nil {
		return nil, err
	}
	d.name = filepath.Base(d.run)
	d.data = filepath.Join(filepath.Dir(env.Data), d.name)
	d.config = filepath.Join(d.data, "daemon.json")
	d.Engine = Engine{
		program: dockerProgram,
		// Neither the client's configuration nor its builder plugin.
		env: []string{"DOCKER_HOST=unix://" + d.socket(), "DOCKER_CONFIG=" + filepath.Join(d.data, "client"), "DOCKER_BUILDKIT=0"},
	}
	if err := os.MkdirAll(filepath.Join(d.data, "bin"), 0o711); err != nil {
		return nil, err
	}
	if o.Shim != "" {
		if err := os.Symlink(o.Shim, filepath.Join(d.data, "bin", "containerd-shim-runc-v2")); err != nil {
			return nil, err
		}
	}
	if err := d.configure(ctx, o); err != nil {
		return nil, err
	}
	env.Watch(d.look)
	if err := d.start(o.Release); err != nil {
		return nil, err
	}
	if err := d.process.Ready(ctx, d.ask); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

func (d *Docker) socket() string { return filepath.Join(d.run, "sock") }

// configure writes the configuration of an administrator.
func (d *Docker) configure(ctx context.Context, o DockerOptions) error {
	conf := map[string]any{
		"hosts":         []string{"unix://" + d.socket()},
		"data-root":     filepath.Join(d.data, "root"),
		"exec-root":     filepath.Join(d.run, "exec"),
		"pidfile":       filepath.Join(d.run, "pid"),
		"exec-opts":     []string{"native.cgroupdriver=cgroupfs"},
		"cgroup-parent": d.cgroup(),
		"debug":         true,
	}
	if o.Release.Debian() {
		conf["storage-driver"] = "overlay2"
	} else if o.Runtime == "" {
		// Debian's runc is older than they are.
		conf["features"] = map[string]bool{"time-namespaces": false}
	}
	if o.Runtime != "" {
		conf["default-runtime"] = o.Runtime
	}
	text, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.config, text, 0o600); err != nil || o.Runtime != "kata" {
		return err
	}
	r, err := d.env.Run(ctx, nil, "kata", "install", "docker", "--docker-config", d.config)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("kata install docker: exit code %d: %s", r.Code, r.Stderr)
	}
	return err
}

// cgroup is where containers go. Nothing else is in it.
func (d *Docker) cgroup() string {
	return "/" + filepath.Base(filepath.Dir(d.env.State)) + "-" + d.name
}

func (d *Docker) start(r Release) (err error) {
	cmd := exec.Command(r.dockerd(), "--config-file", d.config)
	path := slices.Concat([]string{filepath.Join(d.data, "bin"), d.env.Bin}, r.path, []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"})
	cmd.Env = append(os.Environ(), "PATH="+strings.Join(path, ":"), "KATA_CONF_FILE="+d.env.Config)
	d.process, err = daemon.Start(cmd, "dockerd", d.logFile())
	return err
}

// ask finds out whether the daemon answers.
func (d *Docker) ask(ctx context.Context) ([]byte, error) {
	return d.Command(ctx, "version").CombinedOutput()
}

func (d *Docker) logFile() string { return filepath.Join(d.data, "log") }

// Log returns the last of what dockerd has said that was more than a remark.
func (d *Docker) Log() string { return daemon.Said(d.logFile()) }

// Stop ends the daemon in good order, and removes the bridge, which it leaves.
func (d *Docker) Stop() error {
	if err := d.process.End(unix.SIGTERM); err != nil {
		return err
	}
	var errs []error
	if out, err := exec.Command("ip", "link", "delete", "docker0").CombinedOutput(); err != nil {
		errs = append(errs, fmt.Errorf("ip link delete docker0: %w: %s", err, out))
	}
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		groups, err := filepath.Glob(pattern + d.cgroup())
		errs = append(errs, err)
		for _, g := range groups {
			if err := os.Remove(g); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// look finds what containers have left.
func (d *Docker) look(s harness.Snapshot) error {
	for _, pattern := range []string{
		filepath.Join(d.data, "root/containers/*"), filepath.Join(d.data, "root/overlay2/*-init"),
		filepath.Join(d.run, "exec/containerd/daemon/io.containerd.runtime.v*/*/*"),
		filepath.Join(d.run, "exec/runtime-*/*/*"), filepath.Join(d.run, "exec/netns/*"),
		"/sys/fs/cgroup" + d.cgroup() + "/*/", "/sys/fs/cgroup/*" + d.cgroup() + "/*/",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, f := range slices.DeleteFunc(found, func(f string) bool { return filepath.Base(f) == "default" }) {
			s["of "+d.name+": "+f] = true
		}
	}
	return nil
}
