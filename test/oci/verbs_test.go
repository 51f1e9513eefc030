//go:build integration

package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// question is a verb, and what both runtimes have to say to it.
type question struct {
	args string // {id} stands for the container
	code int
	says string // on standard error
	// also is what kata-runtime says where it differs, with a reason.
	also, why string
}

// ask asks a runtime.
func ask(t *testing.T, r runtime, status, id string, questions []question) {
	t.Helper()
	for _, q := range questions {
		args := strings.Fields(q.args)
		for i := range args {
			if args[i] == "{id}" {
				args[i] = id
			}
		}
		res := r.do(t, args...)
		said := strings.ReplaceAll(res.errOut, `\"`, `"`)
		says := strings.ReplaceAll(q.says, "{id}", id)
		if r.name != "runc" && q.why != "" {
			says = q.also
		}
		if res.code != q.code || !strings.Contains(said, says) || says == "" && said != "" {
			t.Errorf("%s, container %s: %s: exit code %d, %q; want %d, %q", r.name, status, q.args, res.code, said, q.code, says)
		}
	}
}

// TestVerbs asks each verb about a container that is not there, created, running,
// paused, stopped.
func TestVerbs(t *testing.T) {
	const missing = "container does not exist"
	for _, r := range runtimes(t) {
		id := mark() + "-verbs"
		dir := bundle(t, nil, "sleep", "1000")
		ask(t, r, "missing", id, []question{
			{args: "state {id}", code: 1, says: missing},
			{args: "start {id}", code: 1, says: missing},
			{args: "kill {id}", code: 1, says: missing},
			{args: "pause {id}", code: 1, says: missing},
			{args: "resume {id}", code: 1, says: missing},
			{args: "ps {id}", code: 1, says: missing},
			{args: "update {id}", code: 1, says: missing},
			{args: "events --stats {id}", code: 1, says: missing},
			{args: "exec {id} true", code: 255, says: "exec failed: " + missing},
			{args: "delete {id}", code: 1, says: missing},
			{args: "delete --force {id}"},
			{args: "state a/b", code: 1, says: "invalid container ID format"},
			{args: "create --bundle " + dir + " ../a", code: 1, says: "invalid container ID format"},
			{args: "create --bundle " + t.TempDir() + " {id}", code: 1, says: "JSON specification file config.json not found"},
			{args: "create --bundle /no/such {id}", code: 1, says: "/no/such: no such file or directory"},
			{args: "create --console-socket /s --bundle " + dir + " {id}", code: 1, says: "will not detach or allocate tty"},
			{args: "create", code: 1, says: "argument", also: "accepts 1 arg", why: "told by another library"},
		})
		c := r.create(t, id, dir)
		ask(t, r, "created", id, []question{
			{args: "create --bundle " + dir + " {id}", code: 1, says: "container with given ID already exists"},
			{args: "run --bundle " + dir + " {id}", code: 1, says: "container with given ID already exists"},
			{args: "resume {id}", code: 1, says: "container not paused"},
			{args: "kill {id} 0"},
			{args: "kill {id} BOGUS", code: 1, says: `unknown signal "BOGUS"`},
			{args: "state {id}"},
			{args: "start {id}"},
		})
		ask(t, r, "running", id, []question{
			{args: "start {id}", code: 1, says: "cannot start an already running container"},
			{args: "resume {id}", code: 1, says: "container not paused"},
			{args: "delete {id}", code: 1, says: "cannot delete container {id} that is not stopped: running"},
			{args: "exec {id} false", code: 1},
			{args: "exec {id} nope", code: 255, says: `"nope": executable file not found in $PATH`},
			{args: "exec {id} /etc/passwd", code: 255, says: `"/etc/passwd": permission denied`},
			{args: "exec {id}", code: 255, says: "process args cannot be empty"},
			{args: "exec --tty --detach {id} true", code: 255, says: "will detach without setting console socket"},
			{args: "update --pids-limit 100 {id}"},
			{args: "kill {id} 0"},
			{args: "pause {id}"},
		})
		ask(t, r, "paused", id, []question{
			{args: "start {id}", code: 1, says: "cannot start a container in the paused state"},
			{args: "pause {id}", code: 1, says: "container not running"},
			{args: "exec {id} true", code: 255, says: "cannot exec in a paused container (use --ignore-paused to override)", also: "cannot exec in a paused container: it could not begin; resume it first", why: "that flag would not help"},
			{args: "delete {id}", code: 1, says: "cannot delete container {id} that is not stopped: paused"},
			{args: "resume {id}"},
			{args: "kill {id} KILL"},
		})
		if code := c.end(t); code != 128+int(unix.SIGKILL) {
			t.Errorf("%s: exit code %d", r.name, code)
		}
		ask(t, r, "stopped", id, []question{
			{args: "start {id}", code: 1, says: "cannot start a container that has stopped"},
			{args: "pause {id}", code: 1, says: "container not running"},
			{args: "resume {id}", code: 1, says: "container not paused"},
			{args: "exec {id} true", code: 255, says: "cannot exec in a stopped container"},
			{args: "update {id}", code: 1, says: "container not running"},
			{args: "events --stats {id}", code: 1, says: "container with id {id} is not running"},
			{args: "kill {id} KILL", code: 1, says: "container not running"},
			{args: "kill --all {id} KILL"},
			{args: "delete {id}"},
			{args: "delete {id}", code: 1, says: missing},
		})
	}
}

// shape is a JSON document without what differs from one container to the next.
func shape(t *testing.T, text string) string {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	doc["ociVersion"], doc["created"] = "", ""
	if pid, _ := doc["pid"].(float64); pid > 0 {
		doc["pid"] = "a pid"
	}
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestState has the same state of both, but for what must differ.
func TestState(t *testing.T) {
	id := mark() + "-state"
	dir := bundle(t, func(s *specs.Spec) { s.Annotations = map[string]string{"a": "b"} }, "sleep", "1000")
	seen := map[string][]string{}
	for _, r := range runtimes(t) {
		c := r.create(t, id, dir)
		see := func() {
			out := r.must(t, "state", id)
			seen[r.name] = append(seen[r.name], shape(t, out))
			if _, pid := r.status(t, id); pid != c.pid && pid != 0 {
				t.Errorf("%s: state has pid %d, the file %d", r.name, pid, c.pid)
			}
			list := r.must(t, "list", "--format", "json")
			seen[r.name] = append(seen[r.name], shape(t, strings.Trim(strings.TrimSpace(list), "[]")))
			seen[r.name] = append(seen[r.name], r.must(t, "list", "--quiet"))
		}
		see()
		r.must(t, "start", id)
		see()
		pids := strings.TrimSpace(r.must(t, "ps", "--format", "json", id))
		seen[r.name] = append(seen[r.name], strings.Replace(pids, strconv.Itoa(c.pid), "the pid", 1))
		r.must(t, "kill", id, "KILL")
		c.end(t)
		see()
		r.must(t, "delete", id)
	}
	for i := range seen["runc"] {
		if w, g := seen["runc"][i], seen["kata-runtime"][i]; w != g {
			t.Errorf("runc: %s\nkata: %s", w, g)
		}
	}
}

// TestProcess is what an engine has of the process that it waits for.
func TestProcess(t *testing.T) {
	for _, r := range runtimes(t) {
		id := mark() + "-process"
		t.Run(r.name, func(t *testing.T) {
			c := r.create(t, id, bundle(t, nil, "sh", "-c", "trap 'echo got it; exit 9' USR1; echo ready; read line; echo $line; read never"))
			if c.out.String() != "" {
				t.Errorf("before start: %q", c.out.String())
			}
			r.must(t, "start", id)
			harness.Poll(t, "output", func() bool { return strings.Contains(c.out.String(), "ready") })
			if _, err := c.in.WriteString("a line\n"); err != nil {
				t.Fatal(err)
			}
			harness.Poll(t, "input", func() bool { return strings.Contains(c.out.String(), "a line") })
			if err := unix.Kill(c.pid, unix.SIGUSR1); err != nil { // not by the runtime
				t.Fatal(err)
			}
			code := c.end(t)
			<-c.read
			if got := fmt.Sprintf("%d %q", code, c.out.String()); got != `9 "ready\na line\ngot it\n"` {
				t.Errorf("got %s", got)
			}
		})
		t.Run(r.name+", killed by its pid", func(t *testing.T) {
			id := id + "-killed"
			c := r.create(t, id, bundle(t, nil, "sleep", "1000"))
			r.must(t, "start", id)
			if err := unix.Kill(c.pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if code := c.end(t); code != 137 {
				t.Errorf("exit code %d", code)
			}
			if st, _ := r.status(t, id); st != "stopped" {
				t.Errorf("it is %s", st)
			}
			r.must(t, "delete", id)
		})
		t.Run(r.name+", not started", func(t *testing.T) {
			id := id + "-unstarted"
			c := r.create(t, id, bundle(t, nil, "sleep", "1000"))
			r.must(t, "delete", id)
			if code := c.end(t); code != 137 {
				t.Errorf("exit code %d", code)
			}
		})
		t.Run(r.name+", exec", func(t *testing.T) {
			id := id + "-exec"
			c := r.create(t, id, bundle(t, nil, "sleep", "1000"))
			r.must(t, "start", id)
			file := filepath.Join(t.TempDir(), "process.json")
			process := `{"cwd":"/tmp","args":["sh","-c","pwd; echo $A; exit 4"],"env":["PATH=/bin","A=b"],"user":{"uid":0,"gid":0}}`
			if err := os.WriteFile(file, []byte(process), 0o600); err != nil {
				t.Fatal(err)
			}
			if res := r.do(t, "exec", "--process", file, id); res.code != 4 || res.out != "/tmp\nb\n" {
				t.Errorf("%+v", res)
			}
			if got := r.must(t, "exec", "--cwd", "/tmp", "--env", "A=c", "--user", "7:8", "--additional-gids", "9", id, "sh", "-c", "pwd; echo $A; id"); got != "/tmp\nc\nuid=7 gid=8 groups=9\n" && !strings.HasPrefix(got, "/tmp\nc\nuid=7 gid=8") {
				t.Errorf("got %q", got)
			}
			pidFile := filepath.Join(t.TempDir(), "pid")
			r.must(t, "exec", "--detach", "--pid-file", pidFile, id, "sh", "-c", "trap 'exit 6' TERM; while true; do sleep 0.1; done")
			b, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(string(b))
			if err != nil {
				t.Fatal(err)
			}
			// Its shell sets the trap in its own time.
			harness.Poll(t, "end of the exec", func() bool {
				_ = unix.Kill(pid, unix.SIGCONT)
				return strings.Contains(r.must(t, "exec", id, "ps"), "sleep 0.1")
			})
			if err := unix.Kill(pid, unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if code := wait(t, pid); code != 6 {
				t.Errorf("exit code of a detached exec: %d", code)
			}
			r.must(t, "kill", id, "KILL")
			c.end(t)
		})
	}
}

// TestAtOnce has several verbs for one container at the same time.
func TestAtOnce(t *testing.T) {
	r := kata(t)
	id := mark() + "-at-once"
	dir := bundle(t, nil, "sleep", "1000")
	const many = 4
	// all runs a verb many times, and tells how often it has succeeded.
	all := func(args ...string) (good int) {
		var running sync.WaitGroup
		var mu sync.Mutex
		for range many {
			running.Go(func() {
				if res := r.do(t, args...); res.code == 0 {
					mu.Lock()
					good++
					mu.Unlock()
				}
			})
		}
		running.Wait()
		return good
	}
	for _, step := range []struct {
		args []string
		want int
	}{
		{[]string{"create", "--bundle", dir, id}, 1},
		{[]string{"start", id}, 1},
		{[]string{"exec", id, "true"}, many},
		{[]string{"pause", id}, 1},
		{[]string{"resume", id}, 1},
		{[]string{"delete", "--force", id}, many},
		{[]string{"state", id}, 0},
	} {
		if got := all(step.args...); got != step.want {
			t.Errorf("%v: %d of %d have succeeded, want %d", step.args, got, many, step.want)
		}
	}
	reap()
}
