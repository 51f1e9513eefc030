// Command bench measures what users of containers in virtual machines wait and
// pay for, prints one table, and compares it with a budget:
//
//	KATA_BIN=bin go run ./test/bench [-n 7] [-only PART] [-pods 20] [-json FILE] [-check]
//
// It needs root, the built programs, QEMU, and for the comparison runc, crun and
// runsc, of which it leaves out what is missing or does not run. Each
// figure is a median; what belongs together is measured in turns, so that a
// machine that slows down slows both.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	var o options
	flag.IntVar(&o.n, "n", 5, "number of cold starts; of execs it is four times as many")
	flag.IntVar(&o.pods, "pods", 20, "number of pods that start at once; 0: none")
	flag.StringVar(&o.containerd, "containerd", "", "`version` of containerd to build and use, empty: Debian's")
	flag.StringVar(&o.only, "only", "", "measure only this `part`: "+strings.Join(parts(), ", "))
	flag.StringVar(&o.json, "json", "", "write the figures to this `file`")
	flag.StringVar(&o.budget, "budget", "test/bench/budget.json", "`file` with the limits")
	flag.BoolVar(&o.check, "check", false, "fail when a figure is over its limit")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout, os.Stderr, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	n, pods            int
	only, json, budget string
	containerd         string
	check              bool
}

// run measures, prints and checks.
func run(ctx context.Context, out, progress io.Writer, o options) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it starts virtual machines")
	}
	if o.only != "" && !slices.Contains(parts(), o.only) {
		return fmt.Errorf("-only %s: not one of %s", o.only, strings.Join(parts(), ", "))
	}
	if o.only != "" && o.check {
		return errors.New("-check is about all figures, and -only measures some")
	}
	limits, err := readBudget(o.budget)
	if err != nil {
		return err
	}
	r, err := measure(ctx, o, func(step string) { fmt.Fprintln(progress, step+" ...") })
	if err != nil {
		return err
	}
	if err := r.markdown(out, limits); err != nil {
		return err
	}
	if o.json != "" {
		b, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return fmt.Errorf("encode figures: %w", err)
		}
		if err := os.WriteFile(o.json, append(b, '\n'), 0o644); err != nil {
			return fmt.Errorf("figures: %w", err)
		}
	}
	if over := exceeded(r, limits); o.check && over != nil {
		return over
	}
	return nil
}
