//go:build integration

// Package differential runs the same OCI bundles with runc and with
// kata-runtime and compares what containers see and what callers get.
//
// A container costs a boot, so that one container answers many questions: each
// case is a variant of a spec, and its container runs a list of probes, shell
// snippets whose output and exit code must be the same under both runtimes.
// What may differ is in listed_test.go, each with its reason.
package differential

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/seed-efd44b36/kata/test/harness"
)

// deadline is for one container; only a hang reaches it.
const deadline = 4 * time.Minute

// suite is what all cases share.
type suite struct {
	env    *harness.Env
	booted *harness.Env // its machines boot, with virtio-fs
	layers string       // directory that the root file system is copied from
	count  atomic.Int64
}

// probe is a question to a container: a snippet for its shell.
type probe struct{ name, script string }

// variant is a container and what is asked of it.
type variant struct {
	name string
	// spec changes the standard spec; b.Dir is there already and may be
	// filled with what the spec refers to.
	spec   func(t *testing.T, b *bundle)
	probes []probe
	// args replace the shell with the probes.
	args []string
	// stdin is the container's input, empty when nil.
	stdin func() io.Reader
	// during handles the running container; it is given what the container
	// has said up to a line that is "ready".
	during func(t *testing.T, c *container)
	// after looks at the host once the container has ended.
	after func(t *testing.T, b *bundle) string
	// virtiofs boots kata's machine with virtio-fs, for what 9p does not have.
	virtiofs bool
	// terminal gives the runtime a terminal instead of pipes.
	terminal bool
}

// observed is what was seen of a container, by the name of the question.
type observed map[string]string

func TestSameAsRunc(t *testing.T) {
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("runc is missing (apt-get install runc)")
	}
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	env, remove, err := harness.New("")
	if err != nil {
		t.Fatal(err)
	}
	booted, removeBooted, err := harness.New("[hypervisor]\nshared_fs = \"virtio-fs\"")
	if err != nil {
		t.Fatal(err)
	}
	if err := env.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, err := env.Snap()
	if err != nil {
		t.Fatal(err)
	}
	s := &suite{env: env, booted: booted, layers: filepath.Join(filepath.Dir(env.Data), "layers")}
	t.Cleanup(func() {
		left, err := env.Leaks(before)
		if err != nil {
			t.Error(err)
		}
		for _, l := range left {
			t.Errorf("left behind: %s", l)
		}
		left, err = booted.Left()
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		if err := errors.Join(remove(), removeBooted()); err != nil {
			t.Error(err)
		}
	})
	if err := unpackImage(t.Context(), s.layers); err != nil {
		t.Fatal(err)
	}
	listed := listedDifferences()
	// The group ends when its parallel members have, before the leak check.
	t.Run("case", func(t *testing.T) {
		for _, v := range variants() {
			t.Run(v.name, func(t *testing.T) {
				t.Parallel()
				want, got := s.run(t, v, s.runc()), s.run(t, v, s.kata(v))
				if once := differing(v.name, listed, want, got); len(once) > 0 {
					// Runc and the programs in the container have races of their own: a
					// difference has to be seen twice.
					t.Logf("seen once: %q", once)
					want2, got2 := s.run(t, v, s.runc()), s.run(t, v, s.kata(v))
					twice := differing(v.name, listed, want2, got2)
					for _, n := range once {
						if !slices.Contains(twice, n) {
							want[n], got[n] = want2[n], got2[n]
						}
					}
				}
				compare(t, v.name, listed, want, got)
			})
		}
	})
}

// questions are those that either side has answered.
func questions(want, got observed) []string {
	names := maps.Clone(want)
	maps.Copy(names, got)
	return slices.Sorted(maps.Keys(names))
}

// differ returns how two answers to a question differ, but for what is listed.
func differ(variant, question string, listed []difference, want, got observed) string {
	w, inWant := want[question]
	g, inGot := got[question]
	if !inWant || !inGot {
		return fmt.Sprintf("answered by runc: %v, by kata-runtime: %v; runc %q; kata-runtime %q", inWant, inGot, w, g)
	}
	for _, d := range listed {
		if d.about(variant, question) {
			w, g = d.hide.ReplaceAllString(w, d.with), d.hide.ReplaceAllString(g, d.with)
		}
	}
	return cmp.Diff(strings.Split(w, "\n"), strings.Split(g, "\n"))
}

// differing are the questions that were answered differently.
func differing(variant string, listed []difference, want, got observed) (names []string) {
	for _, n := range questions(want, got) {
		if differ(variant, n, listed, want, got) != "" {
			names = append(names, n)
		}
	}
	return names
}

// compare reports each question that was answered differently.
func compare(t *testing.T, variant string, listed []difference, want, got observed) {
	for _, n := range questions(want, got) {
		t.Run(n, func(t *testing.T) {
			t.Logf("runc: %s", want[n])
			if diff := differ(variant, n, listed, want, got); diff != "" {
				t.Errorf("runc (-) and kata-runtime (+) differ:\n%s", diff)
			}
		})
	}
}

// tool is a runtime: how it is called for a bundle.
type tool struct {
	name    string
	command func(ctx context.Context, dir, id string) *exec.Cmd
}

func (s *suite) runc() tool {
	root := filepath.Join(filepath.Dir(s.env.State), "runc")
	return tool{"runc", func(ctx context.Context, dir, id string) *exec.Cmd {
		return exec.CommandContext(ctx, "runc", "--root", root, "run", "--bundle", dir, id)
	}}
}

func (s *suite) kata(v variant) tool {
	env := s.env
	if v.virtiofs {
		env = s.booted
	}
	return tool{"kata-runtime", func(ctx context.Context, dir, id string) *exec.Cmd {
		return env.Command(ctx, "kata-runtime", "run", "--bundle", dir, id)
	}}
}

// run runs a variant with a runtime.
func (s *suite) run(t *testing.T, v variant, by tool) observed {
	t.Helper()
	id := fmt.Sprintf("%s-%d", v.name, s.count.Add(1))
	b := newBundle(t, s, id)
	if v.args != nil {
		b.Spec.Process.Args = v.args
	} else {
		b.Spec.Process.Args = []string{"sh", "-c", script(v.probes)}
	}
	if v.spec != nil {
		v.spec(t, b)
	}
	b.write(t)

	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	c := &container{cmd: by.command(ctx, b.Dir, id)}
	var err error
	if v.terminal {
		err = c.runInTerminal(t, v)
	} else {
		err = c.runWithPipes(t, v)
	}
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatalf("%s: %v; stdout %.4000q, stderr %.4000q", by.name, err, c.stdout.String(), c.stderr.String())
	}
	if ctx.Err() != nil {
		t.Fatalf("%s did not end; stdout %.4000q, stderr %.4000q", by.name, c.stdout.String(), c.stderr.String())
	}
	// Names that carry the runtime's or the container's own.
	plain := strings.NewReplacer(id, "ID", b.Dir, "DIR").Replace
	o := observed{"exit": fmt.Sprint(code), "stderr": plain(c.stderr.String())}
	rest := parse(plain(c.stdout.String()), o)
	o["stdout"] = brief(rest)
	if v.after != nil {
		o["after"] = plain(v.after(t, b))
	}
	return o
}

// script writes the probes as one shell script: each in a subshell, between
// two lines that name it and its exit code.
func script(probes []probe) string {
	var b strings.Builder
	for _, p := range probes {
		fmt.Fprintf(&b, "echo '@@ %s'\n(\n%s\n) 2>&1 </dev/null\necho \"@= $?\"\n", p.name, p.script)
	}
	return b.String()
}

var answer = regexp.MustCompile(`(?ms)^@@ ([^\n]+)\n(.*?)^?@= (\d+)\n`)

// parse adds the answers in a container's output to o and returns what is not
// part of one.
func parse(out string, o observed) string {
	for _, m := range answer.FindAllStringSubmatch(out, -1) {
		o[m[1]] = m[2] + "exit code " + m[3]
	}
	return answer.ReplaceAllString(out, "")
}

// brief gives long output as its beginning, length and checksum.
func brief(s string) string {
	const long = 8 << 10
	if len(s) <= long {
		return s
	}
	return fmt.Sprintf("%.200s… %d bytes, sha256 %x", s, len(s), sha256.Sum256([]byte(s)))
}

// container is one in the course of running.
type container struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	terminal       *os.File // the master's end, when there is one
}

func (c *container) runWithPipes(t *testing.T, v variant) error {
	if v.stdin != nil {
		c.cmd.Stdin = v.stdin()
	}
	c.cmd.Stderr = &c.stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.cmd.Start(); err != nil {
		return err
	}
	c.read(t, v, out)
	return c.cmd.Wait()
}

// read reads what the container says to its end, and calls the variant's
// handler at the line "ready".
func (c *container) read(t *testing.T, v variant, from io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		c.stdout.Write(buf[:n])
		if v.during != nil && bytes.Contains(c.stdout.Bytes(), []byte("ready")) {
			v.during(t, c)
			v.during = nil
		}
		if err != nil {
			return // the end, or EIO from a terminal that nobody has open
		}
	}
}
