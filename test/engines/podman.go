package engines

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/seed-efd44b36/kata/test/harness"
)

// podmanProgram is Debian's.
const podmanProgram = "/usr/bin/podman"

// podmanConfig is what differs from Podman's defaults: there is no systemd, no
// syslog, and root may not have the right to raise limits.
const podmanConfig = `[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
infra_image = "pause"
runtime = %q
tmp_dir = %q
static_dir = %q
volume_path = %q
[engine.runtimes]
%s = [%q]
[network]
network_backend = "netavark"
network_config_dir = %q
[containers]
init_path = "/usr/bin/tini-static"
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
`

// NewPodman prepares a Podman in directories that go with env's. The runtime is
// the path of a program, which gets env's configuration.
func NewPodman(env *harness.Env, name, runtime string) (*Engine, error) {
	run, err := os.MkdirTemp(filepath.Dir(env.State), name+"-")
	if err != nil {
		return nil, err
	}
	data := filepath.Join(filepath.Dir(env.Data), filepath.Base(run))
	root, networks := filepath.Join(data, "root"), filepath.Join(data, "networks")
	for _, dir := range []string{data, root, networks} {
		if err := os.Mkdir(dir, 0o711); err != nil {
			return nil, err
		}
	}
	// Podman starts runtimes without the environment.
	wrapper := filepath.Join(data, name)
	script := fmt.Sprintf("#!/bin/sh\nexec env KATA_CONF_FILE=%q %q \"$@\"\n", env.Config, runtime)
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(data, "containers.conf")
	text := fmt.Sprintf(podmanConfig, name, filepath.Join(run, "tmp"), filepath.Join(root, "libpod"), filepath.Join(data, "volumes"),
		name, wrapper, networks)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	env.Watch(func(s harness.Snapshot) error {
		for _, pattern := range []string{filepath.Join(root, "overlay-containers/*/userdata"), filepath.Join(run, "overlay-containers/*/*")} {
			found, err := filepath.Glob(pattern)
			if err != nil {
				return err
			}
			for _, f := range found {
				s["of "+name+": "+f] = true
			}
		}
		return nil
	})
	return &Engine{
		program: podmanProgram,
		args:    []string{"--root", root, "--runroot", run, "--tmpdir", filepath.Join(run, "tmp")},
		env:     []string{"CONTAINERS_CONF=" + config},
		dir:     data,
	}, nil
}
