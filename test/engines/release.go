package engines

import (
	"context"
	"path/filepath"

	"github.com/seed-efd44b36/kata/test/containerd"
	"github.com/seed-efd44b36/kata/test/gobuild"
)

// dockerVersion is the version of Docker's Go module that is built, which is
// Docker 29.8.
const dockerVersion = "2.0.0-beta.24"

// Release is a Docker that is installed somewhere. The zero value is Debian's.
type Release struct {
	// path are directories with dockerd, docker-proxy, containerd and the shim of
	// runc, which come before those of the system.
	path []string
}

// Module returns a Docker built from its Go module, with the containerd of test/containerd:
// each takes two minutes the first time. The client, runc and the rest are Debian's.
func Module(ctx context.Context) (Release, error) {
	const path = "github.com/moby/moby/v2"
	docker, err := gobuild.Program{
		Name: "docker", Module: path, Version: dockerVersion,
		Packages: []string{path + "/cmd/dockerd", path + "/cmd/docker-proxy"},
		// It runs a containerd beside itself, as it does when it is installed from packages.
		Flags: []string{"-tags", "no_btrfs,no_embedded_containerd", "-ldflags", "-s -w -X " + path + "/dockerversion.Version=" + dockerVersion},
	}.Build(ctx)
	if err != nil {
		return Release{}, err
	}
	c, err := containerd.Module(ctx, containerd.ModuleVersion)
	return Release{path: []string{filepath.Join(docker, "bin"), c.Dir}}, err
}

// Debian tells whether it is Debian's.
func (r Release) Debian() bool { return r.path == nil }

// dockerd is the daemon's program.
func (r Release) dockerd() string {
	if r.Debian() {
		return "/usr/sbin/dockerd"
	}
	return filepath.Join(r.path[0], "dockerd")
}
