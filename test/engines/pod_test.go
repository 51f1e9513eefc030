//go:build integration

package engines

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// kube is a pod in the form of Kubernetes.
const kube = `apiVersion: v1
kind: Pod
metadata: {name: played}
spec:
  restartPolicy: Never
  containers:
  - {name: one, image: "busybox:latest", imagePullPolicy: Never, command: [sleep, "1000"]}
`

// testPod joins two containers in a pod, which is one virtual machine, and plays
// a file.
func testPod(t *testing.T, s subject) {
	if err := s.Load(t.Context(), "pause"); err != nil {
		t.Fatal(err)
	}
	remove := func(pod string) {
		t.Cleanup(func() {
			if r, err := s.Run(context.WithoutCancel(t.Context()), nil, "pod", "rm", "-f", "-t", "0", pod); err != nil || r.Code != 0 {
				t.Errorf("pod rm: %v: %s", err, r.Stderr)
			}
		})
	}
	remove("pair")
	s.Must(t, "pod", "create", "--name", "pair", "--infra-image", "pause")
	s.Must(t, "run", "-d", "--pod", "pair", "--name", "one", "busybox", "sh", "-c", "mkdir /www; echo served >/www/index.html; exec httpd -f -p 127.0.0.1:80 -h /www")
	s.Must(t, "run", "-d", "--pod", "pair", "--name", "two", "busybox", "sleep", "1000")
	boots := map[string]bool{}
	for _, name := range []string{"one", "two"} {
		boots[s.Must(t, "exec", name, "cat", "/proc/sys/kernel/random/boot_id")] = true
		s.kernel(t, s.Must(t, "exec", name, "uname", "-r"))
	}
	if len(boots) != 1 {
		t.Errorf("the containers of a pod have different kernels: %v", boots)
	}
	if got := s.Must(t, "exec", "two", "sh", "-c", `printf 'GET /index.html HTTP/1.0\r\n\r\n' | nc -w 20 127.0.0.1 80 | tail -n 1`); got != "served" {
		t.Errorf("by the pod's loopback: %q", got)
	}

	remove("played")
	file := filepath.Join(t.TempDir(), "pod.yaml")
	if err := os.WriteFile(file, []byte(kube), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Must(t, "play", "kube", file)
	s.kernel(t, s.Must(t, "exec", "played-one", "uname", "-r"))
}
