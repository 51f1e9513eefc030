//go:build integration

package containerd

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// operate runs the operator's program.
func operate(t *testing.T, args ...string) harness.Result {
	t.Helper()
	r, err := env.Run(t.Context(), strings.NewReader(""), "kata-runtime", args...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// operated is operate for what has to succeed; it returns the output.
func operated(t *testing.T, args ...string) string {
	t.Helper()
	r := operate(t, args...)
	if r.Code != 0 {
		t.Errorf("kata-runtime %s: exit code %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// traced looks at the time line of a pod with a container.
func traced(t *testing.T, pod, container string) {
	t.Helper()
	const starter, shim = "containerd-shim-kata-v2 start", "containerd-shim-kata-v2"
	lines := harness.TimeLine(t, operated(t, "trace", "--json", pod))
	harness.InOrder(t, lines[""],
		starter, starter+"/program start", starter+"/configuration and guest image", starter+"/start the shim",
		shim, shim+"/program start", shim+"/open sandbox", shim+"/boot", shim+"/boot/network", shim+"/boot/VMM", shim+"/boot/VMM/QEMU up",
		shim+"/boot/agent's first answer", shim+"/boot/guest set-up")
	harness.InOrder(t, lines[container], "create container", "create container/create in guest", "start container", "start container/start in guest")
	lines = harness.TimeLine(t, operated(t, "trace", "--json", container))
	if len(lines[""]) > 0 || len(lines[container]) == 0 {
		t.Errorf("the time line of a container has %v", lines)
	}
	if text := operated(t, "trace", "--svg", pod[:12]); !strings.HasPrefix(text, "<svg ") {
		t.Errorf("the picture: %.200s", text)
	}
}

// TestOperator looks at sandboxes of containerd with kata-runtime.
func TestOperator(t *testing.T) {
	eachPod(t, func(t *testing.T, c ctr) {
		if c.shim != sandboxer.shim {
			t.Skip("runc's sandboxes are not for kata-runtime")
		}
		t.Parallel()
		t.Run("pod", func(t *testing.T) {
			p := c.runPod(t, nil)
			main := p.sleeper(t, "main")
			list := operated(t, "list")
			t.Logf("the list:\n%s", list)
			lines := strings.Split(list, "\n")
			want(t, "columns", strings.Join(strings.Fields(lines[0]), " "), "ID PID STATUS BUNDLE CREATED OWNER")
			containers := []string{p.id, main}
			if c.runtime == sandboxer.name { // the pod is none
				containers = containers[1:]
			}
			for _, id := range containers {
				bundle := "/run/containerd/io.containerd.runtime.v2.task/k8s.io/" + id
				found := ""
				for _, line := range lines {
					if f := strings.Fields(line); f[0] == id {
						found = fmt.Sprintf("%s %s %v %s", f[1], f[2], strings.HasSuffix(f[3], bundle[len("/run/containerd"):]), f[5])
					}
				}
				want(t, "container in list", found, "-1 running true #0")
			}
			for name, id := range map[string]string{"pod": p.id, "container": main, "beginning of the container's id": main[:12]} {
				want(t, "exec in a "+name, operated(t, "exec", id, "hostname"), "host-of-pod")
			}
			want(t, "user", operated(t, "exec", "-u", "7:8", p.id, "id"), "uid=7 gid=8")
			r, err := env.Run(t.Context(), strings.NewReader("echo $((6*7)); exit 3\n"), "kata-runtime", "exec", p.id)
			if err != nil {
				t.Fatal(err)
			}
			want(t, "shell", fmt.Sprintf("%s%d", r.Stdout, r.Code), "42\n3")
			want(t, "missing command", fmt.Sprint(operate(t, "exec", p.id, "no-such-command").Code), "127")
			terminal := harness.AtTerminal(t, env.Command(t.Context(), "kata-runtime", "exec", p.id), 71, 23)
			terminal.Press("stty size; exit 5\r")
			terminal.See("23 71")
			want(t, "exit code at a terminal", fmt.Sprint(terminal.Exit()), "5")

			second := p.sleeper(t, "second")
			r = operate(t, "exec", p.id, "true")
			if r.Code != 255 || !strings.Contains(r.Stderr, main) || !strings.Contains(r.Stderr, second) {
				t.Errorf("exec in a pod of two: exit code %d: %s", r.Code, r.Stderr)
			}
			if log := operated(t, "logs", p.id); !strings.Contains(log, `"msg":"guest is up"`) {
				t.Errorf("log: %s", log)
			}
			want(t, "lines of the log", fmt.Sprint(strings.Count(operated(t, "logs", "--tail", "1", p.id)+"\n", "\n")), "1")
			operated(t, "console", p.id)
			traced(t, p.id, main)
			p.remove()
			r = operate(t, "exec", p.id, "true")
			if r.Code != 255 || !strings.Contains(r.Stderr, "there is no sandbox or container") {
				t.Errorf("exec in a removed pod: exit code %d: %s", r.Code, r.Stderr)
			}
		})
		if c.runtime == sandboxer.name {
			return // ctr knows no pods
		}
		t.Run("dead machine", func(t *testing.T) {
			id := c.detached(t, nil, "sleep", "10000")
			want(t, "exec", operated(t, "exec", id, "echo", "here"), "here")
			var console, log harness.Buffer
			following := env.Command(t.Context(), "kata-runtime", "console", "--follow", id)
			following.Stdout = &console
			logs := env.Command(t.Context(), "kata-runtime", "logs", "--follow", id)
			logs.Stdout = &log
			for _, cmd := range []interface{ Start() error }{following, logs} {
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
			}
			state, err := report.Read(env.State, id)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Kill(state.VMMPID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := following.Wait(); err != nil {
				t.Errorf("follow the console of a machine that dies: %v", err)
			}
			r := operate(t, "exec", id, "true")
			if r.Code != 255 || !strings.Contains(r.Stderr, "virtual machine") {
				t.Errorf("exec in a dead machine: exit code %d: %s", r.Code, r.Stderr)
			}
			var list []struct {
				ID, Status string
				Exit       report.Exit
			}
			if err := json.Unmarshal([]byte(operated(t, "list", "--format", "json")), &list); err != nil {
				t.Fatal(err)
			}
			found := ""
			for _, l := range list {
				if l.ID == id {
					found = fmt.Sprint(l.Status, " ", l.Exit.Code, " ", strings.Contains(l.Exit.Reason, "virtual machine"))
				}
			}
			want(t, "container in list", found, "stopped 255 true")
			if text := operated(t, "logs", id); !strings.Contains(text, "sandbox died") {
				t.Errorf("log: %s", text)
			}
			c.remove(t, id)
			if err := logs.Wait(); err != nil || !strings.Contains(log.String(), "sandbox died") {
				t.Errorf("follow the log: %v: %s", err, log.String())
			}
		})
	})
}
