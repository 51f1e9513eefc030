package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// engineTable is the heading of what is measured through containerd.
const engineTable = "Through containerd"

// engines measures containers and pods of containerd, of all runtimes in turns.
func (b *bench) engines(ctx context.Context, o options) (err error) {
	b.step("containerd")
	e, err := newEngine(ctx, b, o.containerd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	for _, measure := range []func() error{
		func() error { return b.ctrRuns(ctx, e, o.n) },
		func() error { return b.idleContainers(ctx, e) },
		func() error { return b.podStarts(ctx, e, o.n) },
		func() error { return b.standing(ctx, e, 4*o.n) },
		func() error { return b.manyPods(ctx, e, o.pods) },
	} {
		if err := measure(); err != nil {
			return err
		}
	}
	return nil
}

// of is what was measured, by the runtime's name.
type of map[string]samples

// compare adds a figure of kata's, with the medians of the others beside.
func (b *bench) compare(name, what, unit string, s of) {
	f := newFigure(name, what, unit, s["kata"], nil)
	f.Table = engineTable
	for runtime, theirs := range s {
		if runtime != "kata" {
			f.beside(runtime, theirs.median())
		}
	}
	b.result.Figures = append(b.result.Figures, f)
}

// timesQEMU adds how often the time of a bare QEMU a figure is.
func (b *bench) timesQEMU(name, what string, ratio samples) {
	f := newFigure(name, what, "times", ratio, nil)
	f.Table = engineTable
	b.result.Figures = append(b.result.Figures, f)
}

// ctrRuns measures `ctr run`.
func (b *bench) ctrRuns(ctx context.Context, e *engine, n int) error {
	b.step("ctr run")
	s, ratio := of{}, samples{}
	for range n {
		alone, err := b.bare.boot(ctx)
		if err != nil {
			return err
		}
		for _, r := range e.runtimes {
			t, err := untilOutput(e.run(ctx, r), first)
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			s[r.name] = append(s[r.name], t)
			if r.name == "kata" {
				ratio = append(ratio, t/alone)
			}
		}
	}
	b.compare("ctr_run", "`ctr run` to the first output", "s", s)
	b.timesQEMU("ctr_run_ratio", "that to QEMU alone", ratio)
	return nil
}

// idleContainers measures the memory of containers that stay.
func (b *bench) idleContainers(ctx context.Context, e *engine) (err error) {
	b.step("memory of containers")
	ids := map[string]string{}
	defer func() {
		for _, id := range ids {
			err = errors.Join(err, e.end(ctx, id))
		}
	}()
	for _, r := range e.runtimes {
		cmd, id := e.stay(ctx, r)
		if _, err := took(cmd); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		ids[r.name] = id
	}
	if err := idle(ctx); err != nil {
		return err
	}
	s := of{}
	for name, id := range ids {
		_, whole, err := shimPSS(id)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		s[name] = samples{whole}
	}
	b.compare("container_pss", "all processes of an idle `ctr run`, PSS", "MiB", s)
	return nil
}

// podStarts measures pods through the CRI.
func (b *bench) podStarts(ctx context.Context, e *engine, n int) error {
	b.step("pods")
	s, ratio := of{}, samples{}
	for range n {
		alone, err := b.bare.boot(ctx)
		if err != nil {
			return err
		}
		for _, r := range e.forPods() {
			p, t, err := e.start(ctx, r)
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			if err := p.remove(ctx); err != nil {
				return err
			}
			s[r.name] = append(s[r.name], t)
			if r.name == "kata" {
				ratio = append(ratio, t/alone)
			}
		}
	}
	b.compare("pod_start", "start of a pod with one container, to its first line in the log", "s", s)
	b.timesQEMU("pod_start_ratio", "that to QEMU alone", ratio)
	return nil
}

// standing measures pods that stay: execs and memory.
func (b *bench) standing(ctx context.Context, e *engine, n int) (err error) {
	b.step("exec through the CRI, memory of pods")
	pods := map[string]*pod{}
	defer func() {
		for _, p := range pods {
			err = errors.Join(err, p.remove(ctx))
		}
	}()
	for _, r := range e.forPods() {
		p, _, err := e.start(ctx, r)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		pods[r.name] = p
	}
	if err := idle(ctx); err != nil {
		return err
	}
	shims, wholes := of{}, of{}
	for name, p := range pods {
		shim, whole, err := shimPSS(p.id)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		shims[name], wholes[name] = samples{shim}, samples{whole}
	}
	s := of{}
	var ratio samples
	for range n {
		last := map[string]float64{}
		for _, r := range e.forPods() {
			t, err := pods[r.name].exec(ctx, "/bench/hello")
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			s[r.name], last[r.name] = append(s[r.name], t*1000), t
		}
		if last["runc"] > 0 {
			ratio = append(ratio, last["kata"]/last["runc"])
		}
	}
	b.compare("cri_exec", "exec of a static program through the CRI", "ms", s)
	if len(ratio) > 0 {
		f := newFigure("cri_exec_ratio", "that to runc's", "times", ratio, nil)
		f.Table = engineTable
		b.result.Figures = append(b.result.Figures, f)
	}
	b.compare("shim_pss", "shim of an idle pod, PSS", "MiB", shims)
	b.compare("pod_pss", "all processes of an idle pod, PSS", "MiB", wholes)
	return nil
}

// manyPods measures pods that start at once.
func (b *bench) manyPods(ctx context.Context, e *engine, n int) error {
	if n == 0 {
		return nil
	}
	b.step(fmt.Sprintf("%d pods at once", n))
	s, failures := of{}, of{}
	for _, r := range e.forPods() {
		t, failed, err := e.atOnce(ctx, r, n)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		s[r.name], failures[r.name] = samples{t}, samples{float64(len(failed))}
		if len(failed) > 0 {
			b.note("%s: %d of %d pods at once did not start, the first: %.300s", r.name, len(failed), n, strings.ReplaceAll(failed[0].Error(), "\n", " "))
		}
	}
	b.compare("pods_at_once", fmt.Sprintf("%d pods at once, until the last has started", n), "s", s)
	b.compare("pods_at_once_failed", fmt.Sprintf("of these did not start (of %d)", n), "pods", failures)
	return nil
}

// idle waits until what has been started has come to rest.
func idle(ctx context.Context) error {
	select {
	case <-time.After(idleTime):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// shimPSS returns the memory of the shim of a pod or container, and of it with
// all processes below it, in MiB.
func shimPSS(id string) (shim, whole float64, err error) {
	parents := map[int]int{}
	leader := 0
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, 0, err
	}
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		args, aerr := os.ReadFile(filepath.Join(d, "cmdline"))
		stat, serr := os.ReadFile(filepath.Join(d, "stat"))
		if aerr != nil || serr != nil {
			continue // it has just ended
		}
		// PID (NAME) STATE PARENT …, and NAME may have anything in it.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		parents[pid], _ = strconv.Atoi(fields[1])
		if words := strings.Split(string(args), "\x00"); strings.Contains(words[0], "containerd-shim-") && strings.Contains(string(args), "\x00"+id+"\x00") {
			leader = pid
		}
	}
	if leader == 0 {
		return 0, 0, fmt.Errorf("%s has no shim", id)
	}
	for pid := range parents {
		for p := pid; p > 1; p = parents[p] {
			if p != leader {
				continue
			}
			v, err := pss(pid)
			if err != nil {
				return 0, 0, err
			}
			whole += v
			if pid == leader {
				shim = v
			}
			break
		}
	}
	return shim, whole, nil
}
