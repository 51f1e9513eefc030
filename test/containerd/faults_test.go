//go:build integration

package containerd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// process is a line of /proc.
type process struct {
	pid, parent int
	args        string
}

// processes lists what runs.
func processes(t *testing.T) []process {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var list []process
	for _, d := range dirs {
		args, err := os.ReadFile(filepath.Join(d, "cmdline"))
		stat, serr := os.ReadFile(filepath.Join(d, "stat"))
		if err != nil || serr != nil || len(args) == 0 {
			continue // it has just ended
		}
		// PID (NAME) STATE PARENT …, and NAME may have anything in it.
		f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		pid, _ := strconv.Atoi(filepath.Base(d))
		parent, _ := strconv.Atoi(string(f[1]))
		list = append(list, process{pid: pid, parent: parent, args: string(bytes.ReplaceAll(args, []byte{0}, []byte{' '}))})
	}
	return list
}

// shim finds the shim of a pod.
func (p *pod) shim(t *testing.T) int {
	t.Helper()
	for _, pr := range processes(t) {
		if strings.Contains(pr.args, "containerd-shim-") && strings.Contains(pr.args, p.id) && !strings.Contains(pr.args, " delete") {
			return pr.pid
		}
	}
	t.Fatalf("pod %s has no shim", p.id)
	return 0
}

// machine finds the QEMU that is below a process.
func machine(t *testing.T, ancestor int) int {
	t.Helper()
	below := map[int]bool{ancestor: true}
	list := processes(t)
	for range list { // until nothing new is found
		for _, pr := range list {
			if below[pr.parent] {
				below[pr.pid] = true
			}
		}
	}
	for _, pr := range list {
		if below[pr.pid] && strings.Contains(pr.args, "qemu-system") {
			return pr.pid
		}
	}
	t.Fatalf("there is no QEMU below process %d", ancestor)
	return 0
}

// ends waits until the pod and its container are known to have ended, and
// removes the pod.
func (p *pod) ends(t *testing.T, container string) *runtime.ContainerStatus {
	t.Helper()
	s := p.wait(t, container)
	if s.ExitCode == 0 || s.Reason == "" {
		t.Errorf("exit code %d, reason %q", s.ExitCode, s.Reason)
	}
	harness.Poll(t, "the pod is not ready", func() bool {
		r, err := p.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id})
		return err == nil && r.Status.State == runtime.PodSandboxState_SANDBOX_NOTREADY
	})
	p.remove()
	return s
}

// TestFaults kills what a pod consists of, and looks that the pod can be removed
// and is not missed by anybody. What is left on the host, the end of the suite
// finds.
func TestFaults(t *testing.T) {
	eachPod(t, func(t *testing.T, shared ctr) {
		t.Parallel()
		release := strings.Split(t.Name(), "/")[1]
		c := shared
		c.Daemon = ownDaemon(t, release, "f-"+release+"-"+c.runtime, nil)

		t.Run("containerd", func(t *testing.T) {
			p := c.runPod(t, nil)
			id := p.sleeper(t, "main")
			for _, end := range []func() error{c.Kill, c.Stop} {
				if err := end(); err != nil {
					t.Fatal(err)
				}
				if c.runtime == "kata" {
					want(t, "an operator's exec without containerd", operated(t, "exec", p.id, "echo", "alone"), "alone")
				}
				if err := c.Start(context.WithoutCancel(t.Context())); err != nil {
					t.Fatal(err)
				}
				awaitReady(t, c.Daemon, p.Client)
				want(t, "state", p.status(t, id).State.String(), "CONTAINER_RUNNING")
				want(t, "exec", p.sh(t, id, "echo still here"), "still here")
				other := containerConfig(newID(t), "echo", "another")
				want(t, "a new container", p.output(t, other), "another")
			}
			p.stop(t, id, 10)
			p.remove()
		})
		// The sandboxer differs in how containerd finds a pod, and learns of its end.
		brief := c.runtime == sandboxer.name && os.Getenv("KATA_LONG") == ""
		t.Run("shim", func(t *testing.T) {
			if brief {
				t.Skip("with KATA_LONG=1")
			}
			p := c.runPod(t, nil)
			id := p.sleeper(t, "main")
			if err := unix.Kill(p.shim(t), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			p.ends(t, id)
		})
		t.Run("shim while containerd is away", func(t *testing.T) {
			if brief {
				t.Skip("with KATA_LONG=1")
			}
			p := c.runPod(t, nil)
			id := p.sleeper(t, "main")
			if err := c.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := unix.Kill(p.shim(t), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := c.Start(context.WithoutCancel(t.Context())); err != nil {
				t.Fatal(err)
			}
			awaitReady(t, c.Daemon, p.Client)
			p.wait(t, id)
			p.remove()
		})
		if c.runtime == "runc" {
			return
		}
		// A pod whose machine is gone says why: in the log of its containers, and
		// where the kubelet looks for the last words of one.
		for _, fault := range []struct {
			name string
			end  func(t *testing.T, p *pod, id string)
			want string
		}{
			{"virtual machine", func(t *testing.T, p *pod, _ string) {
				if err := unix.Kill(machine(t, p.shim(t)), unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}, "kata: the virtual machine died: qemu ended: killed by signal 9 (killed)"},
			{"kernel", func(t *testing.T, p *pod, id string) {
				_, err := p.ExecSync(t.Context(), &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo c >/proc/sysrq-trigger"}, Timeout: 60})
				t.Logf("the exec: %v", err)
			}, `kata: the virtual machine died: the guest's kernel panicked: "sysrq triggered crash"`},
		} {
			t.Run(fault.name, func(t *testing.T) {
				p := c.runPod(t, func(config *runtime.PodSandboxConfig) { config.Linux.SecurityContext.Privileged = true })
				message := filepath.Join(p.dir, "message")
				if err := os.WriteFile(message, nil, 0o666); err != nil {
					t.Fatal(err)
				}
				config := containerConfig("main", "sh", "-c", "echo started; sleep 10000")
				config.Linux.SecurityContext.Privileged = true
				config.Mounts = []*runtime.Mount{{HostPath: message, ContainerPath: "/dev/termination-log"}}
				id := p.start(t, config)
				harness.Poll(t, "it has begun", func() bool { return p.log(t, "main.log") == "started" })
				fault.end(t, p, id)
				if c.runtime == sandboxer.name {
					harness.Poll(t, "the pod says why", func() bool {
						r, err := p.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
						return err == nil && "kata: "+r.Info["reason"] == fault.want
					})
				}
				s := p.ends(t, id)
				if s.ExitCode != 255 {
					t.Errorf("exit code %d, want 255", s.ExitCode)
				}
				want(t, "log", p.log(t, "main.log"), "started\n"+fault.want)
				b, err := os.ReadFile(message)
				want(t, "termination message", string(b), fault.want+"\n")
				if err != nil {
					t.Error(err)
				}
			})
		}
	})
}

// podsAtOnce is how many pods are run at a time with KATA_LONG.
const podsAtOnce = 20

// TestManyPods runs pods at once, each with two containers, and with KATA_LONG
// many of them one after the other.
func TestManyPods(t *testing.T) {
	if os.Getenv("KATA_LONG") == "" {
		t.Skip("it takes long; set KATA_LONG=1")
	}
	each(t, func(t *testing.T, c ctr) {
		life := func(t *testing.T) {
			p := c.runPod(t, nil)
			for i := range 2 {
				want(t, "output", p.output(t, containerConfig(fmt.Sprintf("c%d", i), "echo", "hello")), "hello")
			}
			p.remove()
		}
		t.Run("at once", func(t *testing.T) {
			for i := range podsAtOnce {
				t.Run(strconv.Itoa(i), func(t *testing.T) { t.Parallel(); life(t) })
			}
		})
		t.Run("in a row", func(t *testing.T) {
			for i := range 200 {
				t.Run(strconv.Itoa(i), life)
			}
		})
	})
}
