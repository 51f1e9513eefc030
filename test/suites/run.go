package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// runner runs one suite, a test at a time: each with a containerd that has just
// been started, and with nothing there of the tests before.
type runner struct {
	suite    suite
	programs built
	env      *harness.Env
	registry *registry
	dir, out string
	only     *regexp.Regexp
	reasons  map[string]string // of the tests that are known to fail
}

// compare runs all tests with the reference, and with our runtime those of
// which something passes with it. What fails then and is not listed is run once
// more: the tests have deadlines that are meant for machines with KVM.
func (r *runner) compare(ctx context.Context) (map[string]pair, error) {
	reference, ours := runtimes()
	names, err := r.list(ctx, reference)
	if err != nil {
		return nil, err
	}
	all := make(map[string]pair)
	for i, name := range names {
		a, err := r.run(ctx, reference, name)
		if err != nil {
			return nil, err
		}
		for test, o := range a {
			all[test] = pair{reference: o}
		}
		if !a.any(passed) {
			r.say(i, len(names), name, a, nil)
			continue
		}
		b, err := r.run(ctx, ours, name)
		if err != nil {
			return nil, err
		}
		if !r.settled(a, b) {
			again, err := r.run(ctx, ours, name)
			if err != nil {
				return nil, err
			}
			for test, o := range again {
				if o == passed && b[test] != passed {
					again[test] = late
				}
			}
			b = again
		}
		for test, o := range b {
			p := all[test]
			p.ours = o
			all[test] = p
		}
		r.say(i, len(names), name, a, b)
	}
	return all, nil
}

// settled reports whether a second try with ours would tell nothing new.
func (r *runner) settled(reference, ours results) bool {
	all := make(map[string]pair)
	for name, o := range reference {
		all[name] = pair{reference: o, ours: ours[name]}
	}
	return len(judge(all, r.reasons, false).broken) == 0
}

func (r *runner) say(i, n int, name string, a, b results) {
	fmt.Printf("%s %d/%d %-60s %s %s\n", r.suite.name, i+1, n, name, a[name], b[name])
}

// list returns the names of the tests that are wanted.
func (r *runner) list(ctx context.Context, rt runtime) ([]string, error) {
	out, err := r.start(ctx, rt, "list", "-test.short", "-test.list", ".")
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(out) {
		if name := strings.TrimSpace(line); strings.HasPrefix(name, "Test") && !strings.ContainsAny(name, " :") && r.only.MatchString(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no test has a name like %q; the program said:\n%s", r.only, out)
	}
	return names, nil
}

// run runs one test.
func (r *runner) run(ctx context.Context, rt runtime, name string) (results, error) {
	out, err := r.start(ctx, rt, name, "-test.v=test2json", "-test.run", "^"+name+"$", "-test.timeout", rt.most.String())
	if err != nil {
		return nil, err
	}
	got := parse(out)
	if _, ok := got[name]; !ok {
		got[name] = failed // it never ended
	}
	return got, nil
}

// start runs the suite's program to its end, kills all that it has left, and
// returns what it said.
func (r *runner) start(ctx context.Context, rt runtime, name string, args ...string) (said string, err error) {
	outDir := filepath.Join(r.out, rt.name)
	if err := os.MkdirAll(outDir, 0o755); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, clean(r.dir)) }()
	if r.suite.daemon {
		d, err := r.daemon(ctx, rt, filepath.Join(outDir, name+".containerd"))
		if err != nil {
			return "", err
		}
		defer d.stop()
		args = append(args, "-cri-endpoint=unix://"+d.address, "-runtime-handler="+rt.name, "-containerd-bin=containerd", "-build-dir="+r.bin())
	} else {
		args = append(args, "-test.root", "-no-criu")
	}
	args = append(args, "-image-list="+r.registry.list)
	file, err := os.OpenFile(filepath.Join(outDir, name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return "", err
	}
	defer file.Close()
	// The program ends itself, and says where it hung; this is for what cannot.
	ctx, cancel := context.WithTimeout(ctx, rt.most+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(r.programs.tests, r.suite.program), args...)
	cmd.Stdout, cmd.Stderr = file, file
	cmd.Env = r.environment("TEST_RUNTIME=" + rt.shim)
	cmd.Dir = r.dir
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	err = cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return "", err
	}
	b, err := os.ReadFile(file.Name())
	return string(b), err
}

// environment is that of containerd and of the suites.
func (r *runner) environment(more ...string) []string {
	path := strings.Join([]string{r.bin(), r.programs.release.Dir, r.programs.tests, r.env.Bin, os.Getenv("PATH")}, ":")
	return append(append(os.Environ(), "PATH="+path, "SSL_CERT_FILE="+r.registry.certificate, "KATA_CONF_FILE="+r.env.Config), more...)
}

// clean ends all processes but ours, and removes the mounts, files and cgroups
// of the test that has ended.
func clean(dir string) error {
	if err := killOthers(); err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var targets []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 {
			targets = append(targets, f[4])
		}
	}
	for _, t := range slices.Backward(targets) {
		below := func(d string) bool { return strings.HasPrefix(t, d+"/") }
		if below("/run") || below("/var/lib") || below("/var/tmp") || below("/opt") || below(dir) || below("/tmp") {
			_ = unix.Unmount(t, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // a parent may have taken it along
		}
	}
	for _, pattern := range []string{"/run/netns/*", "/run/containerd*", "/run/kata-*/s/*", "/run/runc*", "/var/lib/*", "/opt/containerd"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, f := range found {
			if err := os.RemoveAll(f); err != nil {
				return err
			}
		}
	}
	groups, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, g := range groups {
		entries, err := os.ReadDir(g.path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.IsDir() && e.Name() != "runner" {
				if err := removeCgroup(filepath.Join(g.path, e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// killOthers ends all processes of the namespace but the first and this one.
func killOthers() error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		// No process but the first is told, nor this one.
		err := unix.Kill(-1, unix.SIGKILL)
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		if err != nil || time.Now().After(deadline) {
			others, _ := filepath.Glob("/proc/[0-9]*")
			return fmt.Errorf("end processes of a test: %w; there are %s", err, strings.Join(others, " "))
		}
		time.Sleep(20 * time.Millisecond)
	}
}
