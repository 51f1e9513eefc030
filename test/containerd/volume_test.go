//go:build integration

package containerd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// buildProbe builds the program that containers use for what busybox cannot.
func buildProbe(dir string) error {
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "probe"), "./probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the probe: %w: %s", err, out)
	}
	return nil
}

// probeDir is the directory on the host that has the probe.
func probeDir() string { return filepath.Join(filepath.Dir(env.Data), "probe") }

// withProbe adds the probe to a container, at /probe/probe.
func withProbe(config *runtime.ContainerConfig) *runtime.ContainerConfig {
	config.Mounts = append(config.Mounts, &runtime.Mount{HostPath: probeDir(), ContainerPath: "/probe", Readonly: true})
	return config
}

// hostDir is a directory of the host for volumes.
type hostDir struct {
	t    *testing.T
	path string
}

func newHostDir(t *testing.T, p *pod, name string) *hostDir {
	t.Helper()
	d := &hostDir{t, filepath.Join(p.dir, name)}
	d.mkdir(".")
	return d
}

// in is the path of what is called name in the directory.
func (d *hostDir) in(name string) string { return filepath.Join(d.path, name) }

func (d *hostDir) mkdir(name string) string {
	d.t.Helper()
	if err := os.MkdirAll(d.in(name), 0o777); err != nil {
		d.t.Fatal(err)
	}
	return d.in(name)
}

func (d *hostDir) write(name, text string) {
	d.t.Helper()
	d.mkdir(filepath.Dir(name))
	if err := os.WriteFile(d.in(name), []byte(text), 0o644); err != nil {
		d.t.Fatal(err)
	}
}

func (d *hostDir) read(name string) string {
	d.t.Helper()
	b, err := os.ReadFile(d.in(name))
	if err != nil {
		d.t.Error(err)
	}
	return string(b)
}

// link makes a symbolic link, in one step if it was there.
func (d *hostDir) link(to, name string) {
	d.t.Helper()
	fresh := d.in(filepath.Join(filepath.Dir(name), "..data_tmp"))
	if err := errors.Join(os.Symlink(to, fresh), os.Rename(fresh, d.in(name))); err != nil {
		d.t.Fatal(err)
	}
}

func (d *hostDir) mount(source, name, fstype string, flags uintptr, data string) {
	d.t.Helper()
	if err := unix.Mount(source, d.mkdir(name), fstype, flags, data); err != nil {
		d.t.Fatalf("mount %s: %v", name, err)
	}
	path := d.in(name)
	d.t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) }) // perhaps it is gone already
}

// hostPaths is of directories and files of the host.
func hostPaths(t *testing.T, p *pod, _ string) {
	t.Helper()
	d := newHostDir(t, p, "paths")
	d.write("rw/there", "of the host\n")
	d.write("ro/there", "to read\n")
	d.write("file", "a file\n")
	d.write("sub/path/there", "below\n")
	d.link("rw", "link-to-dir")
	d.link("file", "link-to-file")
	d.mkdir("ro/nested/rw") // where one is mounted into another, that one has to have the place
	d.mount("tmpfs", "tree/below", "tmpfs", 0, "size=1m")
	d.mount("tmpfs", "memory", "tmpfs", 0, "size=2m") // as the kubelet makes an emptyDir of medium Memory
	d.write("tree/below/there", "of another file system\n")

	config := containerConfig("host-paths", "sleep", "10000")
	for _, m := range []*runtime.Mount{
		{HostPath: "rw", ContainerPath: "/rw"},
		{HostPath: "ro", ContainerPath: "/ro", Readonly: true},
		{HostPath: "file", ContainerPath: "/etc/file", Readonly: true},
		{HostPath: "rw", ContainerPath: "/ro/nested/rw"},
		{HostPath: "link-to-dir", ContainerPath: "/link-to-dir"},
		{HostPath: "link-to-file", ContainerPath: "/link-to-file"},
		{HostPath: "sub/path", ContainerPath: "/sub"},
		{HostPath: "is/missing", ContainerPath: "/missing"},
		{HostPath: "tree", ContainerPath: "/tree"},
		{HostPath: "tree", ContainerPath: "/tree-ro", Readonly: true},
		{HostPath: "memory", ContainerPath: "/memory"},
	} {
		m.HostPath = d.in(m.HostPath)
		config.Mounts = append(config.Mounts, m)
	}
	id := p.start(t, config)
	const readOnly = "Read-only file system"
	for _, tc := range []struct{ name, script, want string }{
		{"files of the host", "cat /rw/there /ro/there /etc/file", "of the host\nto read\na file"},
		{"links as sources", "cat /link-to-dir/there /link-to-file", "of the host\na file"},
		{"a part of a volume", "cat /sub/there", "below"},
		{"a directory that was missing", "ls -A /missing; touch /missing/x && echo made", "made"},
		{"one volume in another", "echo from inside >/rw/new; cat /ro/nested/rw/new", "from inside"},
		{"read-only", "{ touch /ro/x /etc/file || true; } 2>&1", "touch: /ro/x: " + readOnly + "\ntouch: /etc/file: " + readOnly},
		{"a file system below", "cat /tree/below/there; touch /tree/below/x && echo made", "of another file system\nmade"},
		{"read-only is the volume, not the file system below", "{ touch /tree-ro/x; touch /tree-ro/below/y && echo made; } 2>&1", "touch: /tree-ro/x: " + readOnly + "\nmade"},
		{"the size of memory", "head -c 3000000 /dev/zero >/memory/big 2>/dev/null; wc -c </memory/big; rm /memory/big", "2097152"},
	} {
		t.Run(tc.name, func(t *testing.T) { want(t, tc.script, p.sh(t, id, tc.script), tc.want) })
	}
	want(t, "written inside", d.read("rw/new"), "from inside\n")
	want(t, "made inside", d.read("is/missing/x"), "")
	d.write("rw/later", "later\n")
	harness.Poll(t, "a new file is seen", func() bool { return p.sh(t, id, "cat /rw/later 2>/dev/null || true") == "later" })
	p.stop(t, id, 0)

	t.Run("read-only with all below", func(t *testing.T) {
		if p.daemon.Release.ConfigVersion == 2 {
			t.Skip("containerd 1.6 does not know of it")
		}
		config := containerConfig("recursive-read-only", "sh", "-c", "touch /tree/x; touch /tree/below/y")
		config.Mounts = []*runtime.Mount{{HostPath: d.in("tree"), ContainerPath: "/tree", Readonly: true, RecursiveReadOnly: true}}
		id, err := p.try(config)
		if p.runtime == "runc" && err != nil && strings.Contains(err.Error(), "does not support recursive read-only") {
			t.Skip("this runc cannot")
		}
		if err != nil {
			t.Fatal(err)
		}
		p.wait(t, id)
		want(t, "output", p.log(t, config.LogPath), "touch: /tree/x: "+readOnly+"\ntouch: /tree/below/y: "+readOnly)
		for _, m := range []*runtime.Mount{
			{RecursiveReadOnly: true},
			{RecursiveReadOnly: true, Readonly: true, Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		} {
			m.HostPath, m.ContainerPath = d.in("tree"), "/tree"
			config := containerConfig("nonsense", "true")
			config.Mounts = []*runtime.Mount{m}
			if _, err := p.try(config); err == nil {
				t.Errorf("%v is not refused", m)
			}
		}
	})
}

// propagation is of mounts that are made, on the host or inside, while a
// container runs.
func propagation(t *testing.T, p *pod, _ string) {
	t.Helper()
	d := newHostDir(t, p, "propagation")
	d.mkdir("volume")
	d.mount(d.in("volume"), "volume", "", unix.MS_BIND, "")
	if err := unix.Mount("", d.in("volume"), "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	d.mkdir("volume/later")
	d.mkdir("volume/inside")
	config := containerConfig("propagation", "sleep", "10000")
	config.Linux.SecurityContext.Privileged = true
	config.Mounts = []*runtime.Mount{
		{HostPath: d.in("volume"), ContainerPath: "/private"},
		{HostPath: d.in("volume"), ContainerPath: "/slave", Propagation: runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
	}
	id := p.start(t, config)
	want(t, "before", p.sh(t, id, "ls -A /slave/later /private/later"), "/private/later:\n\n/slave/later:")
	d.mount("tmpfs", "volume/later", "tmpfs", 0, "size=1m")
	d.write("volume/later/flag", "of a later mount\n")
	harness.Poll(t, "a later mount is seen", func() bool {
		return p.sh(t, id, "cat /slave/later/flag 2>/dev/null || true") == "of a later mount"
	})
	want(t, "the private one", p.sh(t, id, "ls -A /private/later"), "")
	p.sh(t, id, "mount -t tmpfs x /slave/inside && touch /slave/inside/x")
	if entries, err := os.ReadDir(d.in("volume/inside")); err != nil || len(entries) > 0 {
		t.Errorf("a mount of the container is on the host: %v, %v", entries, err)
	}
	if err := unix.Unmount(d.in("volume/later"), unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
	harness.Poll(t, "the end of it is seen", func() bool { return p.sh(t, id, "ls -A /slave/later") == "" })
	p.stop(t, id, 0)

	both := containerConfig("bidirectional", "true")
	both.Linux.SecurityContext.Privileged = true
	both.Mounts = []*runtime.Mount{{HostPath: d.in("volume"), ContainerPath: "/both", Propagation: runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
	_, err := p.try(both)
	if p.runtime == "runc" {
		if err != nil {
			t.Error(err)
		}
		return
	}
	if err == nil || !strings.Contains(err.Error(), "cannot appear on the host") || !strings.Contains(err.Error(), "HostToContainer") {
		t.Errorf("a mount that is to go both ways: %v; want an error that says what to do", err)
	}
}

// sharing is of a volume that two containers use at once: an emptyDir.
func sharing(t *testing.T, p *pod, _ string) {
	t.Helper()
	d := newHostDir(t, p, "sharing")
	d.mkdir("empty")
	d.write("empty/mapped", strings.Repeat("x", 4096))
	var list []string
	for i := range 2 {
		config := withProbe(containerConfig(fmt.Sprintf("sharing-%d", i), "sh", "-c",
			"if [ -e /empty/first ]; then exec sleep 10000; fi; touch /empty/first; /probe/probe serve /empty/socket & /probe/probe hold /empty/lock & /probe/probe map /empty/mapped hello; sleep 10000"))
		config.Mounts = append(config.Mounts, &runtime.Mount{HostPath: d.in("empty"), ContainerPath: "/empty"})
		list = append(list, p.start(t, config))
		if i == 0 {
			harness.Poll(t, "it listens, has the lock and has written", func() bool {
				l := p.log(t, config.LogPath)
				return strings.Contains(l, "listening") && strings.Contains(l, "locked") && strings.Contains(l, "written")
			})
		}
	}
	want(t, "a unix socket", p.sh(t, list[1], "/probe/probe ask /empty/socket hello"), "hello")
	want(t, "a lock", p.sh(t, list[1], "/probe/probe try /empty/lock"), "somebody else has it")
	want(t, "a mapped file", p.sh(t, list[1], "head -c 5 /empty/mapped"), "hello")
	want(t, "files", p.sh(t, list[1], "echo one >/empty/a; ls /empty"), "a\nfirst\nlock\nlock2\nmapped\nsocket")
	want(t, "files, in the other one", p.sh(t, list[0], "cat /empty/a"), "one")
	for _, id := range list {
		p.stop(t, id, 0)
	}
}

// configuration is of a ConfigMap and a Secret, as the kubelet writes and updates
// them: seen inside, and told to who watches them.
func configuration(t *testing.T, p *pod, _ string) {
	t.Helper()
	d := newHostDir(t, p, "pods/"+p.config.Metadata.Uid+"/volumes")
	write := func(volume, version string, keys ...string) {
		t.Helper()
		for _, k := range keys {
			d.write(filepath.Join(volume, ".."+version, k), version+"\n")
		}
		d.link(".."+version, filepath.Join(volume, "..data"))
		for _, k := range keys {
			if _, err := os.Lstat(d.in(filepath.Join(volume, k))); err != nil {
				d.link("..data/"+k, filepath.Join(volume, k))
			}
		}
	}
	const configMap, secret = "kubernetes.io~configmap/config", "kubernetes.io~secret/password"
	write(configMap, "first", "key", "other")
	write(secret, "first", "password")
	if err := errors.Join(os.Chmod(d.in(secret+"/..first/password"), 0o440), os.Chown(d.in(secret+"/..first/password"), 0, 1000)); err != nil {
		t.Fatal(err)
	}
	config := withProbe(containerConfig("configuration", "sh", "-c",
		"/probe/probe watch /config & /probe/probe watch /config/key & sleep 10000"))
	config.Mounts = append(config.Mounts,
		&runtime.Mount{HostPath: d.in(configMap), ContainerPath: "/config", Readonly: true},
		&runtime.Mount{HostPath: d.in(secret), ContainerPath: "/secret", Readonly: true},
		// A part of a volume stays as it is.
		&runtime.Mount{HostPath: d.in(configMap + "/..first/other"), ContainerPath: "/part", Readonly: true},
	)
	id := p.start(t, config)
	harness.Poll(t, "it watches", func() bool { return strings.Count(p.log(t, config.LogPath), "watched") == 2 })
	want(t, "at first", p.sh(t, id, "cat /config/key /config/other /secret/password /part; ls -A /config; readlink /config/key; stat -c '%a %u %g' /secret/..data/password"),
		"first\nfirst\nfirst\nfirst\n..data\n..first\nkey\nother\n..data/key\n440 0 1000")
	want(t, "read-only", p.sh(t, id, "{ touch /config/x || true; } 2>&1"), "touch: /config/x: Read-only file system")
	write(configMap, "second", "key", "more")
	if err := errors.Join(os.Remove(d.in(configMap+"/other")), os.RemoveAll(d.in(configMap+"/..first"))); err != nil {
		t.Fatal(err)
	}
	harness.Poll(t, "the update is seen", func() bool {
		return p.sh(t, id, "cat /config/key /config/more; ls -A /config") == "second\nsecond\n..data\n..second\nkey\nmore"
	})
	harness.Poll(t, "the update is told", func() bool {
		l := p.log(t, config.LogPath)
		return strings.Contains(l, "/config moved-to ..data") && strings.Contains(l, "/config delete other") && strings.Contains(l, "/config/key delete-self")
	})
	want(t, "what is mounted by itself", p.sh(t, id, "cat /part"), "first")
	p.stop(t, id, 0)
}

// imageVolume mounts an image.
func imageVolume(t *testing.T, p *pod, _ string) {
	t.Helper()
	if p.daemon.Release.ConfigVersion == 2 {
		t.Skip("containerd 1.6 does not know of it")
	}
	for _, tc := range []struct{ name, part, script, want string }{
		{"image-volume", "", "ls /image/bin/busybox; { touch /image/x || true; } 2>&1; /image/bin/busybox echo runs", "/image/bin/busybox\ntouch: /image/x: Read-only file system\nruns"},
		{"image-volume-part", "etc", "ls /image/passwd", "/image/passwd"},
	} {
		config := containerConfig(tc.name, "sh", "-c", tc.script)
		config.Mounts = []*runtime.Mount{{ContainerPath: "/image", Readonly: true, Image: &runtime.ImageSpec{Image: busybox}, ImageSubPath: tc.part}}
		want(t, tc.name, p.output(t, config), tc.want)
	}
}
