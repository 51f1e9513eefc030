//go:build integration

package containerd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	types "github.com/containerd/containerd/api/types"
	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// blockDaemon starts a containerd that keeps root file systems in image files,
// which it mounts by loop devices for others than us.
func blockDaemon(t *testing.T, name string) *Daemon {
	t.Helper()
	scratch := filepath.Join(t.TempDir(), "scratch")
	sh(t, "truncate -s 64M "+scratch+" && mkfs.ext4 -q -F "+scratch)
	return ownDaemon(t, "module", name, func(d *Daemon) error {
		if err := d.Install(t.Context()); err != nil {
			return err
		}
		f, err := os.OpenFile(d.Config, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = fmt.Fprintf(f, `
[plugins."io.containerd.snapshotter.v1.blockfile"]
  scratch_file = %q
  fs_type = "ext4"
`, scratch)
		for _, r := range runtimes {
			if err == nil {
				_, err = fmt.Fprintf(f, "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.%s-block]\n  runtime_type = %q\n  snapshotter = \"blockfile\"\n", r.name, r.shim)
			}
		}
		return err
	})
}

// sh runs a script on the host and returns what it prints.
func sh(t *testing.T, script string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// loops lists the files below dir that loop devices of the host are on.
func loops(t *testing.T, dir string) string {
	t.Helper()
	return sh(t, "cat /sys/block/loop*/loop/backing_file 2>/dev/null | grep -F "+dir+"/ || true")
}

// blockEach runs a test with each runtime.
func blockEach(t *testing.T, d *Daemon, test func(t *testing.T, c ctr)) {
	t.Helper()
	for _, r := range runtimes {
		t.Run(r.name, func(t *testing.T) {
			if r.name == "kata" {
				needKata(t)
			}
			test(t, ctr{Daemon: d, runtime: r.name + "-block", shim: r.shim})
		})
	}
}

// TestBlockRootfs runs containers whose root file systems are in image files.
func TestBlockRootfs(t *testing.T) {
	t.Parallel()
	d := blockDaemon(t, "block")
	blockEach(t, d, func(t *testing.T, c ctr) {
		flags := []string{"--snapshotter", "blockfile"}
		t.Run("run", func(t *testing.T) {
			got := c.run(t, flags, "sh", "-c", "grep ' / ' /proc/mounts | cut -d ' ' -f 3; echo x >/new && sync && cat /new; df / | tail -n 1 | awk '{ print ($2 < 65536) }'")
			if got != (result{out: "ext4\nx\n1\n"}) {
				t.Errorf("got %+v", got)
			}
		})
		t.Run("read-only", func(t *testing.T) {
			got := c.run(t, append(flags, "--read-only"), "sh", "-c", "touch /x 2>&1; echo $?")
			if got != (result{out: "touch: /x: Read-only file system\n1\n"}) {
				t.Errorf("got %+v", got)
			}
		})
		t.Run("no loop device", func(t *testing.T) {
			id := c.detached(t, flags, "sleep", "10000")
			if l := loops(t, d.Root); (l == "") != (c.shim == "io.containerd.kata.v2") {
				t.Errorf("loop devices of the host: %q", l)
			}
			want(t, "exec", c.exec(t, nil, id, nil, "sh", "-c", "echo x >/new; cat /new").out, "x\n")
		})
		t.Run("damaged", func(t *testing.T) {
			id := newID(t)
			c.must(t, "containers", "create", "--runtime", c.shim, "--snapshotter", "blockfile", busybox, id, "true")
			t.Cleanup(func() { c.remove(t, id) })
			// The latest snapshot is the container's.
			image := sh(t, "ls -t "+d.Root+"/io.containerd.snapshotter.v1.blockfile/snapshots/* | head -n 1")
			sh(t, "dd if=/dev/zero of="+image+" bs=64k count=1 conv=notrunc status=none")
			if r := c.do(t, "tasks", "start", "--fifo-dir", c.Fifos, id); r.code == 0 || !strings.Contains(r.errOut, "mount") {
				t.Errorf("got %+v, want an error about the mount", r)
			}
		})
		t.Run("pod", func(t *testing.T) {
			p := c.runPod(t, nil)
			first, second := p.sleeper(t, "first"), p.sleeper(t, "second")
			for _, id := range []string{first, second} {
				want(t, "its own", p.sh(t, id, "grep ' / ' /proc/mounts | cut -d ' ' -f 3; ls /new 2>/dev/null; echo x >/new; cat /new"), "ext4\nx")
			}
			p.stop(t, first, 10)
			if _, err := p.RemoveContainer(t.Context(), &runtime.RemoveContainerRequest{ContainerId: first}); err != nil {
				t.Error(err)
			}
			want(t, "the other one goes on", p.sh(t, second, "cat /new"), "x")
			p.sleeper(t, "third")
		})
		t.Run("shim is killed", func(t *testing.T) {
			p := c.runPod(t, nil)
			id := p.sleeper(t, "main")
			if err := unix.Kill(p.shim(t), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			p.ends(t, id)
		})
	})
	harness.Poll(t, "no loop device is left", func() bool { return loops(t, d.Root) == "" })
}

// loopDevice makes a loop device of 8 MiB and returns its path and that of its
// file.
func loopDevice(t *testing.T) (device, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	sh(t, "truncate -s 8M "+file+" && printf 'of the host' | dd of="+file+" conv=notrunc status=none")
	return attachLoop(t, file), file
}

// attachLoop makes a loop device of a file, which the end of the test removes.
func attachLoop(t *testing.T, file string) (device string) {
	t.Helper()
	device = sh(t, "losetup --find --show "+file)
	t.Cleanup(func() {
		// What still has it open keeps it.
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
		harness.Poll(t, device+" is free", func() bool {
			_, err := os.Stat(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
			return err != nil
		})
	})
	return device
}

// whoHas lists the descriptors of a block device, by whatever name it was opened.
func whoHas(t *testing.T, device string) (fds []string) {
	t.Helper()
	var wanted unix.Stat_t
	if err := unix.Stat(device, &wanted); err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range all {
		var st unix.Stat_t
		if unix.Stat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == wanted.Rdev && !isPlace(fd) {
			args, _ := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(fd)), "cmdline"))
			fds = append(fds, fmt.Sprintf("%s of %.60q", fd, args))
		}
	}
	return fds
}

// isPlace tells whether a descriptor is of a node alone and opens no device, as
// virtiofsd has one for a node that a container has made.
func isPlace(fd string) bool {
	info, err := os.ReadFile(strings.Replace(fd, "/fd/", "/fdinfo/", 1))
	if err != nil {
		return true // it is closed
	}
	var flags int
	for line := range strings.Lines(string(info)) {
		_, _ = fmt.Sscanf(line, "flags:\t%o", &flags)
	}
	return flags&unix.O_PATH != 0
}

// TestBlockDevices gives block devices of the host to containers of a pod.
func TestBlockDevices(t *testing.T) {
	t.Parallel()
	for _, r := range runtimes {
		t.Run(r.name, func(t *testing.T) {
			if r.name == "kata" {
				needKata(t)
			}
			c := ctr{Daemon: daemons.get(t, "module"), runtime: r.name, shim: r.shim}
			device, file := loopDevice(t)
			p := c.runPod(t, nil)
			with := func(name, permissions string) *runtime.ContainerConfig {
				config := containerConfig(name, "sleep", "10000")
				config.Devices = []*runtime.Device{{ContainerPath: "/dev/xvda", HostPath: device, Permissions: permissions}}
				return config
			}
			first := p.start(t, with("first", "rwm"))
			want(t, "what it is, and what is on it", p.sh(t, first, "stat -c %F /dev/xvda; blockdev --getsize64 /dev/xvda; head -c 11 /dev/xvda"), "block special file\n8388608\nof the host")
			p.sh(t, first, "printf 'of a guest!' | dd of=/dev/xvda conv=notrunc,fsync 2>/dev/null")
			want(t, "on the host", sh(t, "head -c 11 "+device), "of a guest!")

			second := p.start(t, with("second", "r"))
			want(t, "read-only", p.sh(t, second, "head -c 11 /dev/xvda; printf x 2>&1 >/dev/xvda || true"), "of a guest!sh: can't create /dev/xvda: Operation not permitted")
			if c.runtime == "kata" && len(whoHas(t, device)) == 0 {
				t.Error("nobody has the device open")
			}
			third := p.start(t, with("third", "rw"))
			p.sh(t, third, "printf 'of a third!' | dd of=/dev/xvda conv=notrunc 2>/dev/null")
			want(t, "what one writes the other reads", p.sh(t, first, "head -c 11 /dev/xvda"), "of a third!")
			bound := with("bound", "rw")
			bound.Mounts = []*runtime.Mount{{HostPath: device, ContainerPath: "/data"}}
			fourth := p.start(t, bound)
			want(t, "a node that is bound, too", p.sh(t, fourth, "stat -c %F /data; head -c 11 /data"), "block special file\nof a third!")
			bound = with("bound-alone", "rw")
			bound.Devices, bound.Mounts = nil, []*runtime.Mount{{HostPath: device, ContainerPath: "/data"}}
			id, err := p.try(bound)
			if c.runtime == "kata" && (err == nil || !strings.Contains(err.Error(), "no rule of linux.resources.devices")) {
				t.Errorf("bound without a rule: %v", err)
			}
			if c.runtime == "runc" { // which leaves it to the container to find out
				want(t, "bound without a rule", p.sh(t, id, "head -c 1 /data 2>&1 || true"), "head: /data: Operation not permitted")
			}
			none := p.sleeper(t, "none")
			want(t, "no device", p.sh(t, none, "ls /dev/xvda 2>/dev/null; for n in 0 16 32; do mknod /x b 8 $n; head -c 1 /x 2>&1; rm /x; done; mknod /x b 7 0; head -c 1 /x 2>&1; true"),
				strings.Repeat("head: /x: Operation not permitted\n", 4)[:4*len("head: /x: Operation not permitted\n")-1])
			p.stop(t, third, 0)
			p.stop(t, first, 0)
			want(t, "after the others", p.sh(t, second, "head -c 11 /dev/xvda"), "of a third!")
			// With the pod there the device is free when its containers are gone.
			for _, id := range []string{first, second, third, fourth} {
				if _, err := p.RemoveContainer(t.Context(), &runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
					t.Error(err)
				}
			}
			if fds := whoHas(t, device); len(fds) > 0 {
				t.Errorf("%s is open: %q", device, fds)
			}
			if b, err := os.ReadFile(file); err != nil || !bytes.HasPrefix(b, []byte("of a third!")) {
				t.Errorf("in the file: %q, %v", b[:min(11, len(b))], err)
			}
			last := p.start(t, with("last", "rwm"))
			if c.runtime == "kata" {
				shim := p.shim(t)
				if err := unix.Kill(shim, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				p.ends(t, last)
			}
		})
	}
}

// TestBlockDeviceRootfs runs a container whose root file system is on a block
// device, as devmapper gives one: the request is made without ctr.
func TestBlockDeviceRootfs(t *testing.T) {
	t.Parallel()
	d := blockDaemon(t, "blockdev")
	conn, err := grpc.NewClient("unix://"+d.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	client := tasks.NewTasksClient(conn)
	blockEach(t, d, func(t *testing.T, c ctr) {
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "containerd-namespace", "default"), deadline)
		defer cancel()
		id := newID(t)
		script := "grep -c ' / ext4 ' /proc/mounts >/count; echo written >/new; sync; sleep 10000"
		c.must(t, "containers", "create", "--runtime", c.shim, "--snapshotter", "blockfile", busybox, id, "sh", "-c", script)
		t.Cleanup(func() { c.remove(t, id) })
		image := sh(t, "ls -t "+d.Root+"/io.containerd.snapshotter.v1.blockfile/snapshots/* | head -n 1")
		device := attachLoop(t, image)
		if _, err := client.Create(ctx, &tasks.CreateTaskRequest{ContainerID: id, Rootfs: []*types.Mount{{Type: "ext4", Source: device}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Start(ctx, &tasks.StartRequest{ContainerID: id}); err != nil {
			t.Fatal(err)
		}
		harness.Poll(t, "it has written", func() bool { return c.exec(t, nil, id, nil, "cat", "/new").out == "written\n" })
		want(t, "root", c.exec(t, nil, id, nil, "cat", "/count").out, "1\n")
		if c.runtime == "kata-block" {
			if exec.CommandContext(t.Context(), "mount", device, t.TempDir()).Run() == nil {
				t.Error("the host could mount what the machine writes to")
			}
		}
		c.must(t, "tasks", "kill", "--signal", "SIGKILL", id)
		if _, err := client.Wait(ctx, &tasks.WaitRequest{ContainerID: id}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id}); err != nil {
			t.Fatal(err)
		}
		if fds := whoHas(t, device); len(fds) > 0 {
			t.Errorf("%s is open: %q", device, fds)
		}
		// Without a mount, for the guest wrote it.
		want(t, "on the device", sh(t, "debugfs -R 'cat /new' "+device+" 2>/dev/null"), "written")
	})
}
