//go:build integration

package containerd

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/seed-efd44b36/kata/test/cri"
	"github.com/seed-efd44b36/kata/test/harness"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ends is of the ways in which containers end, and do not begin.
func ends(t *testing.T, p *pod, _ string) {
	t.Helper()
	for _, tc := range []struct {
		name    string
		command []string
		change  func(*runtime.ContainerConfig)
		code    int32
		reason  string
		// message is part of what the status says, log all that was printed.
		message, log string
	}{
		{name: "success", command: []string{"true"}, reason: "Completed"},
		{name: "exit code", command: []string{"sh", "-c", "exit 200"}, code: 200, reason: "Error"},
		{name: "by a signal", command: []string{"sh", "-c", "sh -c 'kill -SEGV $$'; exit $?"}, code: 139, reason: "Error"},
		{
			name: "out of memory at once", command: []string{"dd", "if=/dev/zero", "of=/dev/null", "bs=20M"}, code: 137, reason: "OOMKilled",
			change: func(c *runtime.ContainerConfig) {
				c.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 15 << 20, MemorySwapLimitInBytes: 15 << 20}
			},
		},
		{
			name: "directory made", command: []string{"pwd"}, reason: "Completed", log: "/made/in/time",
			change: func(c *runtime.ContainerConfig) { c.WorkingDir = "/made/in/time" },
		},
		{name: "no such program", command: []string{"/bin/nothing"}, code: 128, reason: "StartError", message: "/bin/nothing"},
		{name: "not a program", command: []string{"/etc/passwd"}, code: 128, reason: "StartError", message: "permission denied"},
		{
			name: "no such directory", command: []string{"true"}, code: 128, reason: "StartError", message: "/etc/passwd",
			change: func(c *runtime.ContainerConfig) { c.WorkingDir = "/etc/passwd/x" },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			config := containerConfig("ends-"+notInIDs.ReplaceAllString(tc.name, "-"), tc.command...)
			if tc.change != nil {
				tc.change(config)
			}
			id, err := p.try(config)
			if (err != nil) != (tc.reason == "StartError") {
				t.Fatalf("start: %v", err)
			}
			s := p.wait(t, id)
			harness.Poll(t, "the reason is known", func() bool { // a kill for want of memory is told apart
				s = p.status(t, id)
				return s.Reason == tc.reason
			})
			if s.ExitCode != tc.code || !strings.Contains(s.Message, tc.message) {
				t.Errorf("exit code %d, message %q; want %d, %q", s.ExitCode, s.Message, tc.code, tc.message)
			}
			if tc.log != "" {
				want(t, "output", p.log(t, config.LogPath), tc.log)
			}
		})
	}
}

// stop is of containers that are told to end.
func stop(t *testing.T, p *pod, _ string) {
	t.Helper()
	const trap = `for s in TERM QUIT USR1; do trap "echo $s; exit 7" $s; done; echo ready; while :; do sleep 0.1; done`
	nginx, err := p.daemon.Import(t.Context(), "nginx") // which says how it wants to be told
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, script, image string
		signal              runtime.Signal
		grace               int64
		want                string
	}{
		{name: "politely", script: trap, image: busybox, grace: 60, want: "7 ready\nTERM"},
		{name: "as the image says", script: trap, image: nginx, grace: 60, want: "7 ready\nQUIT"},
		{name: "as the pod says", script: trap, image: busybox, signal: runtime.Signal_SIGNAL_SIGUSR1, grace: 60, want: "7 ready\nUSR1"},
		{name: "who does not listen", script: `trap "" TERM; echo ready; while :; do sleep 0.1; done`, image: busybox, grace: 1, want: "137 ready"},
		{name: "at once", script: trap, image: busybox, grace: 0, want: "137 ready"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.signal != 0 && p.daemon.Release.ConfigVersion == 2 {
				t.Skip("containerd 1.6 does not know of it")
			}
			config := containerConfig("stop-"+notInIDs.ReplaceAllString(tc.name, "-"), "sh", "-c", tc.script)
			config.Image.Image, config.StopSignal = tc.image, tc.signal
			id := p.start(t, config)
			harness.Poll(t, "its traps are set", func() bool { return p.log(t, config.LogPath) == "ready" })
			p.stop(t, id, tc.grace)
			want(t, "exit code and output", fmt.Sprintf("%d %s", p.status(t, id).ExitCode, p.log(t, config.LogPath)), tc.want)
		})
	}
}

// attachTerminal attaches to a container with a terminal, and changes its size.
func attachTerminal(t *testing.T, p *pod, _ string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	config := containerConfig("terminal", "sh")
	config.Stdin, config.Tty = true, true
	id := p.start(t, config)
	in, keys := io.Pipe()
	sizes := make(chan cri.Size, 1)
	defer close(sizes)
	var screen harness.Buffer
	ended := make(chan error, 1)
	go func() { // ends with the shell
		ended <- p.AttachStream(ctx, &runtime.AttachRequest{ContainerId: id, Tty: true}, cri.Streams{Stdin: in, Stdout: &screen, Resize: sizes})
	}()
	sizes <- cri.Size{Width: 77, Height: 22}
	harness.Poll(t, "the terminal has its size", func() bool {
		_, _ = io.WriteString(keys, "stty size\n")
		return strings.Contains(screen.String(), "22 77")
	})
	_, _ = io.WriteString(keys, "exit 9\n")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	want(t, "exit code", fmt.Sprint(p.wait(t, id).ExitCode), "9")
}

// checkpoint has to be refused: runc needs a program for it that is not there.
func checkpoint(t *testing.T, p *pod, main string) {
	t.Helper()
	_, err := p.CheckpointContainer(t.Context(), &runtime.CheckpointContainerRequest{ContainerId: main, Location: p.dir + "/checkpoint"})
	if err == nil {
		t.Error("a checkpoint was made")
	}
	want(t, "the container runs on", p.sh(t, main, "echo here"), "here")
}

// lifeEvents reads the events of a container's life.
func lifeEvents(t *testing.T, p *pod, _ string) {
	t.Helper()
	if p.daemon.Release.ConfigVersion == 2 {
		t.Skip("containerd 1.6 has no events in the CRI")
	}
	var reading sync.WaitGroup
	defer reading.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	events, err := p.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// They are read all the time: containerd starts nothing while they are not.
	var mu sync.Mutex
	got := map[string]string{} // by container; guarded by mu
	reading.Go(func() {        // ends with the context
		for {
			e, err := events.Recv()
			if err != nil {
				return
			}
			mu.Lock()
			got[e.ContainerId] += strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "EVENT")
			mu.Unlock()
		}
	})
	id := p.start(t, containerConfig("events", "true"))
	p.wait(t, id)
	if _, err := p.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	harness.Poll(t, "the events come in order", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return got[id] == "CREATED_STARTED_STOPPED_DELETED_"
	})
}
