//go:build integration

package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/test/cri"
	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A life is that of one pod of a daemon that has no other: it is run, has a
// container that is executed in and stopped, and is stopped.
type life struct {
	ctr
	*cri.Client
	config *runtime.PodSandboxConfig
	// ids of its containers, the pod's among them, as far as they have been seen.
	ids []string
}

// phases of a life, in order, and how to see from outside that one is reached.
var phases = []struct {
	name    string
	reached func(l *life) bool
	// always phases are part of every run, the others of one with KATA_LONG.
	always bool
	// second phases are those of a pod with a pause container.
	second bool
}{
	{name: "shim starts", reached: func(l *life) bool { return len(l.bundles()) > 0 }},
	{name: "directory", reached: func(l *life) bool { return l.records() >= 0 }},
	{name: "cgroup", reached: func(l *life) bool { return l.records() >= 1 }},
	{name: "shared directory", reached: func(l *life) bool { return l.records() >= 2 }, always: true},
	{name: "virtual machine", reached: func(l *life) bool { return l.records() >= 3 }},
	{name: "boot", reached: func(l *life) bool { return l.inState("owner_pid") }},
	{name: "pause container", reached: func(l *life) bool { return l.inState(`"running"`) }, second: true},
	{name: "second container", reached: func(l *life) bool { return len(l.bundles()) > 1 }},
	{name: "container created", reached: func(l *life) bool { return l.inState(`"created"`) && l.inState(`"running"`) }, second: true},
	{name: "running", reached: func(l *life) bool { return l.inLog("started") }},
	{name: "exec", reached: func(l *life) bool { return l.inLog("executed") }, always: true},
	{name: "stop", reached: func(l *life) bool { return l.inLog("stopping") }, always: true},
}

// TestFaultsInEachPhase kills each process that a pod depends on in each phase of
// its life. The caller is told, whatever containerd still shows of the pod can be
// removed, and nothing is left.
func TestFaultsInEachPhase(t *testing.T) {
	eachPodLong(t, func(t *testing.T, c ctr) {
		if c.runtime == "runc" {
			t.Skip("its phases are not to be seen from outside")
		}
		t.Parallel()
		release := strings.Split(t.Name(), "/")[1]
		long := os.Getenv("KATA_LONG") != ""
		if release == "debian" && !long {
			t.Skip("it takes long; set KATA_LONG=1")
		}
		c.Daemon = ownDaemon(t, release, "p-"+release+"-"+c.runtime, nil)
		l := &life{ctr: c, Client: c.client(t)}
		for _, victim := range []string{"shim", "virtual machine", "containerd"} {
			for _, ph := range phases {
				if !long && !ph.always {
					continue
				}
				if c.runtime == sandboxer.name && ph.second {
					continue // it has one container
				}
				t.Run(victim+"/"+ph.name, func(t *testing.T) { l.interrupt(t, victim, ph.reached) })
			}
		}
	})
}

// interrupt lives until a phase is reached, and kills the victim.
func (l *life) interrupt(t *testing.T, victim string, reached func(*life) bool) {
	t.Helper()
	l.config, l.ids = podConfig(t, l.Daemon), nil
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	told := make(chan error, 1)
	go func() { told <- l.live(ctx) }() // ends with ctx

	// As often as can be: some phases are short.
	for !reached(l) {
		select {
		case err := <-told:
			t.Fatalf("the life ended before the phase: %v", err)
		default:
		}
	}
	pid := l.victim(t, victim)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		t.Fatal(err)
	}
	killed := time.Now()
	if victim == "containerd" {
		if err := l.Kill(); err != nil { // waits for it
			t.Fatal(err)
		}
	}
	err := <-told
	if ctx.Err() != nil {
		t.Errorf("the caller is not told: %v", err)
	}
	t.Logf("told after %s: %v", time.Since(killed).Round(time.Millisecond), err)
	if victim == "containerd" {
		if err := l.Start(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
		awaitReady(t, l.Daemon, l.Client)
	}
	l.removeAll(t)
	left := harness.Snapshot{}
	defer func() {
		for what := range left {
			t.Errorf("left: %s", what)
		}
	}()
	harness.Poll(t, "nothing is left", func() bool {
		clear(left)
		if err := l.look(left); err != nil {
			t.Error(err)
		}
		for _, dir := range l.directories() {
			left[dir] = true
		}
		for _, pr := range l.processes(t) {
			left[pr.args] = true
		}
		return len(left) == 0
	})
}

// live returns when the pod has ended or cannot go on.
func (l *life) live(ctx context.Context) error {
	pod, err := l.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: l.config, RuntimeHandler: l.runtime})
	if err != nil {
		return err
	}
	config := containerConfig("main", "sh", "-c", `trap "echo stopping" TERM; echo started; while :; do sleep 10000 & wait; done`)
	c, err := l.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, Config: config, SandboxConfig: l.config})
	if err != nil {
		return err
	}
	if _, err := l.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		return err
	}
	if _, err := l.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c.ContainerId, Cmd: []string{"sh", "-c", "echo executed > /proc/1/fd/1; sleep 2"}}); err != nil {
		return err
	}
	_, serr := l.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.ContainerId, Timeout: 3})
	_, perr := l.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pod.PodSandboxId})
	return errors.Join(serr, perr)
}

// bundles are containerd's directories of containers, the pod's among them.
func (l *life) bundles() []string {
	dirs, _ := filepath.Glob(filepath.Join(l.State, "io.containerd.runtime.v2.task/k8s.io/*"))
	sandboxes, _ := filepath.Glob(filepath.Join(l.State, "io.containerd.sandbox.controller.v1.shim/k8s.io/*"))
	dirs = append(sandboxes, dirs...)
	for _, dir := range dirs {
		if id := filepath.Base(dir); !slices.Contains(l.ids, id) {
			l.ids = append(l.ids, id)
		}
	}
	return dirs
}

// directories are the sandbox's: it is called after the pod.
func (l *life) directories() []string {
	l.bundles()
	var dirs []string
	for _, id := range l.ids {
		dir := filepath.Join(l.env.State, id)
		if _, err := os.Stat(dir); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// processes are those that have the id of a container in their arguments.
func (l *life) processes(t *testing.T) []process {
	t.Helper()
	return slices.DeleteFunc(processes(t), func(pr process) bool {
		return !slices.ContainsFunc(l.ids, func(id string) bool { return strings.Contains(pr.args, id) })
	})
}

// records counts what the sandbox's ledger has; -1: there is no directory yet.
func (l *life) records() int {
	n := -1
	for _, dir := range l.directories() {
		b, _ := os.ReadFile(filepath.Join(dir, "ledger"))
		n = max(n, bytes.Count(b, []byte("\n")))
	}
	return n
}

func (l *life) inState(text string) bool {
	return slices.ContainsFunc(l.directories(), func(dir string) bool {
		b, _ := os.ReadFile(filepath.Join(dir, "state.json"))
		return bytes.Contains(b, []byte(text))
	})
}

func (l *life) inLog(text string) bool {
	b, _ := os.ReadFile(filepath.Join(l.config.LogDirectory, "main.log"))
	return bytes.Contains(b, []byte(" "+text+"\n"))
}

// victim finds the process to kill, and waits for it.
func (l *life) victim(t *testing.T, name string) (pid int) {
	t.Helper()
	if name == "containerd" {
		return l.Pid()
	}
	l.bundles() // the ids
	program := map[string]string{"shim": "containerd-shim-kata-v2", "virtual machine": "qemu-system"}[name]
	harness.Poll(t, fmt.Sprintf("there is a %s", name), func() bool {
		for _, pr := range l.processes(t) {
			if exe, _, _ := strings.Cut(pr.args, " "); strings.Contains(exe, program) {
				pid = pr.pid
				return true
			}
		}
		return false
	})
	return pid
}

// removeAll is `crictl rmp -f` for whatever the CRI knows, again until it
// succeeds: containerd needs a moment to learn that what it takes for running has
// ended, and says so.
func (l *life) removeAll(t *testing.T) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	var last error
	harness.Poll(t, "all pods can be removed", func() bool {
		pods, err := l.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
		for _, p := range pods.GetItems() {
			_, serr := l.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.Id})
			_, rerr := l.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.Id})
			err = errors.Join(err, serr, rerr)
		}
		if err != nil {
			last = err
		}
		return err == nil
	})
	t.Logf("removed after %s; the last error was: %v", time.Since(began).Round(time.Millisecond), last)
}
