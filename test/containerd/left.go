package containerd

import (
	"bytes"
	"os"
	"path/filepath"

	"github.com/seed-efd44b36/kata/test/harness"
)

// look finds what containers and pods have left: directories of containerd,
// pipes, cgroups, addresses.
func (d *Daemon) look(s harness.Snapshot) error {
	data := filepath.Dir(d.Config)
	for _, pattern := range []string{
		filepath.Join(d.State, "io.containerd.runtime.v*/*/*"),
		filepath.Join(d.Root, "io.containerd.runtime.v*/*/*"),
		filepath.Join(d.State, "io.containerd.*cri*/*/*"),
		filepath.Join(d.Root, "io.containerd.grpc.v1.cri/sandboxes/*"),
		filepath.Join(d.Root, "io.containerd.grpc.v1.cri/containers/*"),
		filepath.Join(d.State, "io.containerd.sandbox.controller.v1.shim/*/*"),
		filepath.Join(d.Fifos, "*"),
		filepath.Join(data, "cni/addresses/*/[0-9f]*"),
		filepath.Join("/var/lib/cni/results", d.Network.Name+"-*"),
		"/sys/fs/cgroup" + d.CgroupParent + "/*/", "/sys/fs/cgroup/*" + d.CgroupParent + "/*/",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, f := range found {
			s["of containerd "+d.Release.Name+": "+f] = true
		}
	}
	return nil
}

// LookSockets looks for sockets of our shims, in the directory that all shims
// share, that nobody listens on. Those of runc's stay when one is killed.
func LookSockets(s harness.Snapshot) error {
	sockets, err := filepath.Glob("/run/containerd/s/kata-*")
	if err != nil {
		return err
	}
	listening, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return err
	}
	for _, path := range sockets {
		if !bytes.Contains(listening, []byte(path+"\n")) {
			s["socket "+path] = true
		}
	}
	return nil
}

// RemoveCgroups removes the parents of cgroups, which stay when containers go.
func (d *Daemon) RemoveCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		groups, _ := filepath.Glob(pattern + d.CgroupParent)
		for _, g := range groups {
			_ = os.Remove(g)
		}
	}
}
