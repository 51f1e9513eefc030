package containerd

import (
	"context"
	"fmt"
	"path/filepath"
)

// PauseImage is the image of sandboxes, which has to be imported.
const PauseImage = "localhost/pause:latest"

// config is the configuration, without any runtime but runc, and the one of kata that
// an administrator has to write.
func (d *Daemon) config() (string, error) {
	cni, err := d.Network.Plugins(filepath.Join(filepath.Dir(d.Config), "cni"))
	if err != nil {
		return "", err
	}
	head := fmt.Sprintf(`version = %d
root = %q
state = %q
disabled_plugins = ["io.containerd.nri.v1.nri"]
[debug]
  level = "debug"
[grpc]
  address = %q
[ttrpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
`, d.Release.ConfigVersion, d.Root, d.State, d.Address, d.Address+".ttrpc", filepath.Join(filepath.Dir(d.Config), "opt"))
	// In a container there may be no right to raise the priority for the OOM
	// killer, which is what restrict_oom_score_adj is for.
	if d.Release.ConfigVersion == 2 {
		return head + fmt.Sprintf(`[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
`, PauseImage, cni), nil
	}
	return head + fmt.Sprintf(`[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %q
[plugins."io.containerd.cri.v1.runtime"]
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = %q
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata-sandboxer]
    runtime_type = "io.containerd.kata.v2"
    sandboxer = "shim"
    disable_pause_image_pull = true
    privileged_without_host_devices = true
`, PauseImage, cni), nil
}

// configV1 is a configuration without a version, which containerd 1.x reads,
// without anything about runtimes.
func (d *Daemon) configV1() (string, error) {
	cni, err := d.Network.Plugins(filepath.Join(filepath.Dir(d.Config), "cni"))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf(`root = %q
state = %q
[debug]
  level = "debug"
[grpc]
  address = %q
[ttrpc]
  address = %q
[plugins.opt]
  path = %q
[plugins.cri]
  sandbox_image = %q
  restrict_oom_score_adj = true
[plugins.cri.cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = %q
`, d.Root, d.State, d.Address, d.Address+".ttrpc", filepath.Join(filepath.Dir(d.Config), "opt"), PauseImage, cni), nil
}

// Install lets kata put itself into the configuration, as an administrator does.
func (d *Daemon) Install(ctx context.Context, flags ...string) error {
	r, err := d.env.Run(ctx, nil, "kata", append([]string{"install", "containerd", "--config", d.Config}, flags...)...)
	if err != nil {
		return err
	}
	if r.Code != 0 {
		return fmt.Errorf("kata install containerd: exit code %d: %s", r.Code, r.Stderr)
	}
	return nil
}
