// Command suites runs containerd's own test suites, compiled from its Go module,
// with runc and with kata, and compares: integration/client, which drives tasks
// through containerd's client, and integration, which drives pods through the
// CRI. What passes with runc on this machine has to pass with kata, but for the
// tests in exceptions.txt, each of which has a reason there. docs/containerd.md
// has the story.
//
// It needs root and programs in the directory that KATA_BIN names, or in bin.
// Everything runs in namespaces of processes, mounts, network and cgroups of its
// own, in which the names of registries lead to one that has images made from
// Debian's packages. Nothing is left but the output,
// unless it is killed with SIGKILL.
//
//	go run ./test/suites [-suite client|cri] [-run REGEXP] [-out DIR]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"

	"github.com/seed-efd44b36/kata/test/containerd"
	"github.com/seed-efd44b36/kata/test/harness"
	"golang.org/x/sys/unix"
)

// options are those of the command line.
type options struct {
	suite, run, out string
}

func main() {
	var o options
	flag.StringVar(&o.suite, "suite", "", "run only this suite: client or cri (default: both)")
	flag.StringVar(&o.run, "run", "", "run only tests whose names match this expression")
	flag.StringVar(&o.out, "out", "", "directory for the output of each test (default: a new one in the directory for temporary files)")
	dir := ""
	if os.Args[0] != firstStage && os.Args[0] != secondStage {
		flag.Parse()
	} else {
		dir = os.Args[1]
		_ = flag.CommandLine.Parse(os.Args[2:])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	code, err := o.main(ctx, dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "suites:", err)
		code = 1
	}
	os.Exit(code)
}

func (o options) main(ctx context.Context, dir string) (int, error) {
	if _, err := regexp.Compile(o.run); err != nil {
		return 0, err
	}
	if _, err := find(o.suite); err != nil {
		return 0, err
	}
	switch os.Args[0] {
	case firstStage:
		return initProcess(dir)
	case secondStage:
		return o.work(ctx, dir)
	}
	return o.prepare(ctx)
}

// prepare makes what needs a network, and then runs the rest without one.
func (o options) prepare(ctx context.Context) (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("needs root")
	}
	if os.Getenv(harness.EnvBin) == "" {
		os.Setenv(harness.EnvBin, "bin")
	}
	bin, err := harness.Find()
	if err != nil {
		return 0, err
	}
	os.Setenv(harness.EnvBin, bin)
	if _, err := programs(ctx); err != nil {
		return 0, err
	}
	if _, err := images(ctx); err != nil {
		return 0, err
	}
	// With the configuration of the host, which is that of the suites.
	if err := (&harness.Env{Bin: bin}).Prepare(ctx); err != nil {
		return 0, err
	}
	if o.out == "" {
		if o.out, err = os.MkdirTemp("", "kata-suites-out-"); err != nil {
			return 0, err
		}
	}
	if o.out, err = filepath.Abs(o.out); err != nil {
		return 0, err
	}
	fmt.Println("containerd", containerd.ModuleVersion+", output of the tests in", o.out)
	return alone(ctx, "-suite", o.suite, "-run", o.run, "-out", o.out)
}

// work runs the suites; it is alone.
func (o options) work(ctx context.Context, dir string) (code int, err error) {
	if err := settle(dir); err != nil {
		return 0, err
	}
	known, err := exceptions()
	if err != nil {
		return 0, err
	}
	p, err := programs(ctx)
	if err != nil {
		return 0, err
	}
	env, remove, err := harness.New("")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	reg, err := startRegistry(ctx, dir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, reg.stop()) }()
	suites, err := find(o.suite)
	if err != nil {
		return 0, err
	}
	for _, s := range suites {
		r := runner{suite: s, programs: p, env: env, registry: reg, dir: dir, out: filepath.Join(o.out, s.name), only: regexp.MustCompile(o.run), reasons: known[s.name]}
		results, err := r.compare(ctx)
		if err != nil {
			return 0, fmt.Errorf("suite %s: %w", s.name, err)
		}
		report := judge(results, known[s.name], o.run == "")
		report.print(os.Stdout, s.name)
		if report.bad() {
			code = 1
		}
	}
	return code, nil
}
