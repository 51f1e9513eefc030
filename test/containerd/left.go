package containerd

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/seed-efd44b36/kata/test/harness"
)

// look finds what containers and pods have left: directories of containerd,
// pipes, cgroups, addresses, and sockets of shims that nobody listens on.
func (d *Daemon) look(s harness.Snapshot) error {
	data := filepath.Dir(d.Config)
	for _, pattern := range []string{
		filepath.Join(d.State, "io.containerd.runtime.v2.task/*/*"),
		filepath.Join(d.Root, "io.containerd.runtime.v2.task/*/*"),
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
	return lookSockets(s)
}

// lookSockets looks at the directory that containerd's own shims share, whose
// names are hashes.
func lookSockets(s harness.Snapshot) error {
	const dir = "/run/containerd/s"
	sockets, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	listening, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return err
	}
	for _, e := range sockets {
		if path := filepath.Join(dir, e.Name()); !bytes.Contains(listening, []byte(path+"\n")) {
			s["socket "+path] = true
		}
	}
	return nil
}

// removeCgroups removes the parents of cgroups, which stay when containers go.
func (d *Daemon) removeCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		groups, _ := filepath.Glob(pattern + d.CgroupParent)
		for _, g := range groups {
			_ = os.Remove(g)
		}
	}
}
