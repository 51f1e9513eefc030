// Command bench measures what users of containers wait and pay for: kata cold, by
// template and warm, runc, crun and two of gVisor's runsc, each through
// containerd's `ctr`, the CRI, and command lines. One run, one report:
//
//	KATA_BIN=bin go run ./test/bench [-quick] [-subjects 'kata-*/ctr,runc'] [-only start,exec] [-out DIR]
//	KATA_BIN=bin go run ./test/bench -check
//
// It needs root, the built programs, and QEMU. What is missing of the others is
// left out, and the report says so. Subjects and measurements are two tables, in
// test/bench/subject/runtimes.go and measurements.go; what belongs together is
// measured in turns, so that a machine that slows down slows all. -check measures
// what the limits of the budget are about, and fails when one is broken.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/test/bench/result"
	"github.com/seed-efd44b36/kata/test/bench/subject"
	"golang.org/x/sys/unix"
)

func main() {
	var o options
	flag.Func("subjects", "measure only these: comma-separated `patterns` of RUNTIME/FRONT, or runtimes", func(s string) error {
		o.subjects = strings.Split(s, ",")
		return nil
	})
	flag.Func("only", "make only these `measurements`: comma-separated names, or the beginnings of some up to a dash", func(s string) error {
		o.only = strings.Split(s, ",")
		return nil
	})
	flag.BoolVar(&o.quick, "quick", false, "fewer rounds, and less at once: five minutes instead of most of an hour")
	flag.IntVar(&o.n, "n", 0, "number of `rounds`, instead of each measurement's own")
	flag.StringVar(&o.containerd, "containerd", "", "`version` of containerd to build and use, empty: Debian's")
	flag.StringVar(&o.out, "out", "", "write measured.md, measured.json and pictures to this `directory`, instead of Markdown to standard output")
	flag.StringVar(&o.budget, "budget", "test/bench/budget.json", "`file` with limits and targets")
	flag.BoolVar(&o.check, "check", false, "measure what the limits are about, and fail when one is broken")
	list := flag.Bool("list", false, "list subjects and measurements")
	flag.Parse()
	if *list {
		printTables(os.Stdout)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := bench(ctx, os.Stdout, os.Stderr, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	subjects, only []string
	quick, check   bool
	n              int

	containerd, out, budget string
}

// printTables lists what the tables have.
func printTables(out io.Writer) {
	for _, name := range subject.Names() {
		fmt.Fprintln(out, "subject    ", name)
	}
	for _, m := range measurements() {
		fmt.Fprintln(out, "measurement", m.Name)
	}
}

// validate finds names that mean nothing.
func (o options) validate() error {
	var errs []error
	for _, p := range o.subjects {
		if !slices.ContainsFunc(subject.Names(), options{subjects: []string{p}}.wants) {
			errs = append(errs, fmt.Errorf("-subjects %s: there is none such; -list shows them", p))
		}
	}
	for _, name := range o.only {
		if !slices.ContainsFunc(measurements(), func(m measurement) bool { return m.called(name) }) {
			errs = append(errs, fmt.Errorf("-only %s: there is none such; -list shows them", name))
		}
	}
	if o.check && (len(o.subjects) > 0 || len(o.only) > 0 || o.quick) {
		errs = append(errs, errors.New("-check measures what the limits are about, no more and no less"))
	}
	return errors.Join(errs...)
}

func (o options) mode() string {
	switch {
	case o.check:
		return "check"
	case o.quick:
		return "quick"
	case len(o.subjects)+len(o.only)+o.n > 0:
		return "partial"
	}
	return "full"
}

// bench measures, reports and checks.
func bench(ctx context.Context, out, progress io.Writer, o options) (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root: it starts virtual machines")
	}
	budget, err := result.ReadBudget(o.budget)
	if err != nil {
		return err
	}
	jobs := o.plan(budget)
	start := time.Now()
	report := &result.Report{Date: start.UTC().Format(time.DateOnly), Commit: commit(ctx), Mode: o.mode(), LoadStart: load1()}
	for _, j := range jobs {
		report.Sections = append(report.Sections, j.Section)
	}
	r := &run{options: o, report: report, progress: &clock{w: progress, start: start}, pss: map[string]float64{}}
	r.rig, err = subject.New(ctx, subject.Options{
		Containerd: o.containerd,
		Step:       func(s string) { r.step("%s", s) },
		Want: func(name string) bool {
			return slices.ContainsFunc(jobs, func(j job) bool { return j.takes(name) && j.wants(name) })
		},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.rig.Close()) }()
	report.Skipped = r.rig.Skipped
	if err := r.do(ctx, jobs); err != nil {
		return err
	}
	complete := func() { report.Complete(subject.Reference, subject.Order) }
	complete()
	if doubtful := report.Doubtful(budget); o.check && len(doubtful) > 0 {
		r.step("%d limits are broken or in doubt; once more", len(doubtful))
		if err := r.again(ctx, doubtful); err != nil {
			return err
		}
		complete()
	}
	report.Machine, report.LoadEnd = append(machine(), r.rig.About...), load1()
	report.Minutes = time.Since(start).Minutes()
	if err := write(out, o.out, report, budget); err != nil {
		return err
	}
	var errs []error
	if o.check {
		for _, v := range report.Broken(budget) {
			errs = append(errs, v.Err())
		}
	}
	for _, s := range report.Skipped {
		if s.Failed {
			errs = append(errs, fmt.Errorf("%s: %s: %s", s.Subject, cmp.Or(s.Measurement, "all"), s.Why))
		}
	}
	return errors.Join(errs...)
}

// clock writes the time since the start before each line.
type clock struct {
	w     io.Writer
	start time.Time
}

// Write implements io.Writer.
func (c *clock) Write(p []byte) (int, error) {
	if _, err := fmt.Fprintf(c.w, "%5.0f s  ", time.Since(c.start).Seconds()); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// slug is what the pictures of a measurement are called: its name, without what
// tells it from the others of its family.
func slug(s result.Section) string {
	if s.Family == "" {
		return s.Name
	}
	name, _, _ := strings.Cut(path.Base(s.Name), "-")
	return name
}
