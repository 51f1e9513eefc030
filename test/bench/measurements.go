package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/seed-efd44b36/kata/test/bench/account"
	"github.com/seed-efd44b36/kata/test/bench/result"
	"github.com/seed-efd44b36/kata/test/bench/subject"
)

// measurement is one thing to find out about subjects.
type measurement struct {
	result.Section

	// fronts are the front ends that it makes sense with.
	fronts []string
	// standing is the number of containers of a subject that it needs to have
	// running, for all of its rounds.
	standing int
	// full and quick are the numbers of rounds; with none it is left out.
	full, quick int
	units       []result.Unit
	measure     func(ctx context.Context, t trial) (figures, error)
}

// figures are values by the names of units; what is not there was not measured.
type figures map[string]float64

// trial is a subject in one round.
type trial struct {
	*subject.Subject
	run *run
	// containers are those that stand.
	containers []subject.Container
}

// noFront is that of QEMU alone.
const noFront = ""

// streamMiB is what is written to measure standard output.
const streamMiB = 512

// measurements is the table of them, in the order of the report.
func measurements() []measurement {
	all := []string{subject.CLI, subject.Ctr, subject.CRI, subject.OCI}
	files := []result.Unit{
		{Name: "read", What: "sequential read", Unit: "MB/s", More: true},
		{Name: "reread", What: "the same again", Unit: "MB/s", More: true},
		{Name: "write", What: "sequential write", Unit: "MB/s", More: true},
		{Name: "randread", What: "random read", Unit: "IOPS", More: true},
		{Name: "randwrite", What: "random write", Unit: "IOPS", More: true},
	}
	const aboutFiles = "`test/bench/load files` in a new container: 64 MiB in pieces of 1 MiB, and 4 KiB pages of a file of 32 MiB in no order, for two seconds at most. " +
		"Files that are read are in the host's page cache, and nobody in the container has read them before; writing includes `fsync`."
	list := []measurement{
		{
			Section: result.Section{Name: "start", Title: "Start of a container", About: "A container that writes a word and ends, one at a time. Processor time is that of everything that the start has caused, containerd's too, until all is quiet again."},
			fronts:  append([]string{noFront}, all...), full: 12, quick: 3,
			units: []result.Unit{
				{Name: "first", What: "to the first output", Unit: "s"},
				{Name: "wall", What: "until all is gone", Unit: "s"},
				{Name: "cpu", What: "processor time", Unit: "s"},
			},
			measure: start,
		},
		{
			Section: result.Section{Name: "agent", Title: "Start of the guest", About: "Of the time line of `kata run --trace`: from the start of QEMU to the agent's first answer."},
			fronts:  []string{subject.CLI}, full: 12, quick: 3,
			units:   []result.Unit{{Name: "answer", What: "QEMU to the agent's first answer", Unit: "ms"}},
			measure: agent,
		},
	}
	for _, n := range []int{1, 10, 20, 50} {
		list = append(list, atOnce(n))
	}
	return append(list,
		measurement{
			Section: result.Section{
				Name: "idle-100", Title: "100 idle containers",
				About: "Started ten at a time, then left alone. Processor time is what they use while nobody asks anything of them.",
			},
			fronts: []string{subject.Ctr}, full: 1,
			units: []result.Unit{
				{Name: "pss", What: "memory of each, all processes, PSS", Unit: "MiB"},
				{Name: "cpu", What: "processor time of all, a second", Unit: "ms"},
			},
			measure: idle100,
		},
		measurement{
			Section: result.Section{Name: "exec", Title: "Exec in a running container", About: "A static program of 150 bytes that writes a word."},
			fronts:  all, standing: 1, full: 25, quick: 15,
			units:   []result.Unit{{Name: "wall", What: "until it has ended", Unit: "ms"}},
			measure: execute,
		},
		measurement{
			Section: result.Section{
				Name: "verbs", Title: "Verbs of the OCI command line", Upright: true,
				About: "Each until it has ended, of a container without anything else below its `--root`. " +
					"It is created, started and looked at; `exec` runs a static program of 150 bytes; it is killed, and deleted when it has stopped. `run` is of one that writes a word and ends.",
			},
			fronts: []string{subject.OCI}, full: 10, quick: 5,
			units:   verbUnits(),
			measure: verbs,
		},
		measurement{
			Section: result.Section{Name: "stdout", Title: "Standard output", About: fmt.Sprintf("`dd` writes %d MiB in blocks of 1 MiB, through an exec, into a pipe.", streamMiB)},
			fronts:  []string{subject.CLI, subject.Ctr, subject.OCI}, standing: 1, full: 5, quick: 2,
			units:   []result.Unit{{Name: "rate", What: "from the first byte to the last", Unit: "MB/s", More: true}},
			measure: stdout,
		},
		measurement{
			Section: result.Section{Name: "files-rootfs", Title: "Root file system", Family: "Files", About: aboutFiles},
			fronts:  []string{subject.Ctr}, full: 2, quick: 1, units: files,
			measure: func(ctx context.Context, t trial) (figures, error) { return access(ctx, t, subject.Data, subject.Data) },
		},
		measurement{
			Section: result.Section{Name: "files-volume", Title: "Volume", Family: "Files", About: aboutFiles},
			fronts:  []string{subject.Ctr}, full: 2, quick: 1, units: files,
			measure: func(ctx context.Context, t trial) (figures, error) {
				return access(ctx, t, subject.Volume, subject.Volume)
			},
		},
		measurement{
			Section: result.Section{Name: "network", Title: "Network", About: "One TCP connection for two seconds, by `test/bench/load` on both sides: from the host's end of the pods' bridge to a pod, and from one pod to another."},
			fronts:  []string{subject.CRI}, standing: 2, full: 3, quick: 2,
			units: []result.Unit{
				{Name: "in", What: "host to pod", Unit: "MB/s", More: true},
				{Name: "between", What: "pod to pod", Unit: "MB/s", More: true},
			},
			measure: network,
		},
	)
}

// start measures one that ends by itself. When all is quiet again is found out
// before the next trial, and so is the processor time.
func start(ctx context.Context, t trial) (figures, error) {
	before, err := t.run.cpu()
	if err != nil {
		return nil, err
	}
	s, err := t.Once(ctx)
	if err != nil {
		return nil, err
	}
	if err := t.run.settle(ctx); err != nil {
		return nil, err
	}
	after, err := t.run.cpu()
	return figures{"first": s.First, "wall": s.Whole, "cpu": after - before}, err
}

// verbUnits has a figure for each verb.
func verbUnits() []result.Unit {
	var list []result.Unit
	for _, v := range subject.Verbs() {
		list = append(list, result.Unit{Name: v, What: v, Unit: "ms"})
	}
	return list
}

func verbs(ctx context.Context, t trial) (figures, error) {
	times, err := t.VerbTimes(ctx)
	f := figures{}
	for v, s := range times {
		f[v] = 1000 * s
	}
	return f, err
}

func agent(ctx context.Context, t trial) (figures, error) {
	s, err := t.AgentTime(ctx)
	return figures{"answer": 1000 * s}, err
}

// atOnce is the measurement of n containers that start at the same time.
func atOnce(n int) measurement {
	m := measurement{
		Section: result.Section{
			Name: fmt.Sprintf("parallel-%d", n), Title: fmt.Sprintf("%d at once", n), Family: "Many at once",
			About: "Containers that start at the same time, and stay. The time is until the last has started. Then, after five seconds: what all of their processes take, divided by their number (QEMU with the guest and all in it, shim, proxy, file server, sandbox, gofer, the container's own; not containerd).",
		},
		fronts: []string{subject.CLI, subject.Ctr, subject.CRI, subject.OCI},
		full:   2, quick: 1,
		units: []result.Unit{
			{Name: "wall", What: "until the last has started", Unit: "s"},
			{Name: "cpu", What: "processor time of each", Unit: "s"},
			{Name: "pss", What: "memory of each, all processes, PSS", Unit: "MiB"},
			{Name: "failed", What: "did not start", Unit: "containers"},
		},
		measure: func(ctx context.Context, t trial) (figures, error) { return parallel(ctx, t, n) },
	}
	switch n {
	case 1:
		m.units = append(
			m.units,
			result.Unit{Name: "owner", What: "of that shim or proxy", Unit: "MiB"},
			result.Unit{Name: "agent", What: "agent in the guest, RSS", Unit: "MiB"},
		)
	case 20:
		m.fronts, m.quick = []string{subject.Ctr, subject.CRI, subject.OCI}, 0
	case 50:
		m.fronts, m.full, m.quick = []string{subject.Ctr, subject.CRI, subject.OCI}, 1, 0
	default:
		m.fronts, m.quick = []string{subject.Ctr, subject.CRI, subject.OCI}, 0
	}
	return m
}

// idleTime is how long containers are left alone before their memory is looked at.
const idleTime = 5 * time.Second

// parallel starts n containers at the same time.
func parallel(ctx context.Context, t trial, n int) (_ figures, err error) {
	if err := t.run.fits(ctx, t.Subject, n); err != nil {
		return nil, err
	}
	before, err := t.run.rig.Account.Processes()
	if err != nil {
		return nil, err
	}
	used, err := t.run.cpu()
	if err != nil {
		return nil, err
	}
	f := figures{}
	began := time.Now()
	list, failures := startMany(ctx, t.Subject, n, n)
	f["wall"] = time.Since(began).Seconds()
	defer func() { err = errors.Join(err, removeMany(ctx, list)) }()
	f["failed"] = float64(len(failures))
	if len(failures) > 0 {
		t.run.skip(t.String(), fmt.Sprintf("parallel-%d", n), fmt.Errorf("%d of %d at once did not start: %w", len(failures), n, failures[0]))
	}
	if len(list) == 0 {
		return f, nil
	}
	after, err := t.run.cpu()
	if err != nil {
		return nil, err
	}
	f["cpu"] = (after - used) / float64(n)
	if err := wait(ctx, idleTime); err != nil {
		return nil, err
	}
	whole, owner, err := memory(t.run.rig.Account, before)
	if err != nil {
		return nil, err
	}
	f["pss"] = whole / float64(len(list))
	if owner > 0 {
		f["owner"] = owner / float64(len(list))
	}
	if a, ok := list[0].(subject.WithAgent); ok && t.IsKata() {
		if f["agent"], err = a.AgentRSS(ctx); err != nil {
			return nil, err
		}
	}
	t.run.learn(t.Subject, f["pss"])
	return f, nil
}

// memory adds up all processes that were not there before, and those of them that
// own a sandbox or container.
func memory(group *account.Group, before []account.Process) (whole, owner float64, err error) {
	now, err := group.Processes()
	if err != nil {
		return 0, 0, err
	}
	for _, p := range account.Added(now, before) {
		v, err := account.PSS(p.PID)
		if err != nil {
			return 0, 0, err
		}
		whole += v
		if p.Program == "kata-proxy" || strings.HasPrefix(p.Program, "containerd-shim-") {
			owner += v
		}
	}
	return whole, owner, nil
}

// startMany starts n containers, so many at a time, and returns those that have
// started, and why others have not.
func startMany(ctx context.Context, s *subject.Subject, n, atATime int) ([]subject.Container, []error) {
	var (
		mu       sync.Mutex
		list     []subject.Container // guarded by mu, with failures
		failures []error
		work     sync.WaitGroup
		places   = make(chan struct{}, atATime)
	)
	for range n {
		places <- struct{}{}
		work.Go(func() {
			defer func() { <-places }()
			c, err := s.Stay(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures = append(failures, err)
				return
			}
			list = append(list, c)
		})
	}
	work.Wait()
	return list, failures
}

// removeMany removes containers, a few at a time.
func removeMany(ctx context.Context, list []subject.Container) error {
	var (
		mu     sync.Mutex
		errs   []error // guarded by mu
		work   sync.WaitGroup
		places = make(chan struct{}, 4)
	)
	for _, c := range list {
		places <- struct{}{}
		work.Go(func() {
			defer func() { <-places }()
			if err := c.Remove(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

func idle100(ctx context.Context, t trial) (_ figures, err error) {
	const n = 100
	if err := t.run.fits(ctx, t.Subject, n); err != nil {
		return nil, err
	}
	before, err := t.run.rig.Account.Processes()
	if err != nil {
		return nil, err
	}
	list, failures := startMany(ctx, t.Subject, n, 10)
	defer func() { err = errors.Join(err, removeMany(ctx, list)) }()
	if len(failures) > 0 {
		return nil, fmt.Errorf("%d of %d did not start: %w", len(failures), n, failures[0])
	}
	if err := wait(ctx, 2*idleTime); err != nil {
		return nil, err
	}
	whole, _, err := memory(t.run.rig.Account, before)
	if err != nil {
		return nil, err
	}
	used, err := t.run.cpu()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := wait(ctx, 2*idleTime); err != nil {
		return nil, err
	}
	after, err := t.run.cpu()
	return figures{"pss": whole / n, "cpu": 1000 * (after - used) / time.Since(began).Seconds()}, err
}

func execute(ctx context.Context, t trial) (figures, error) {
	start := time.Now()
	err := t.containers[0].Exec(ctx, io.Discard, subject.Hello)
	return figures{"wall": 1000 * time.Since(start).Seconds()}, err
}

// meter counts bytes and knows when the first came.
type meter struct {
	total int
	first time.Time
}

// Write implements io.Writer.
func (m *meter) Write(p []byte) (int, error) {
	if m.total == 0 {
		m.first = time.Now()
	}
	m.total += len(p)
	return len(p), nil
}

func stdout(ctx context.Context, t trial) (figures, error) {
	var m meter
	if err := t.containers[0].Exec(ctx, &m, "dd", "if=/dev/zero", "bs=1M", fmt.Sprintf("count=%d", streamMiB)); err != nil {
		return nil, err
	}
	if m.total != streamMiB<<20 {
		return nil, fmt.Errorf("standard output: %d bytes, want %d", m.total, streamMiB<<20)
	}
	return figures{"rate": float64(m.total) / 1e6 / time.Since(m.first).Seconds()}, nil
}

// access measures files in a container that nobody has used before.
func access(ctx context.Context, t trial, dir, data string) (_ figures, err error) {
	c, err := t.Stay(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Remove(ctx)) }()
	if err := t.run.rig.Warm(); err != nil {
		return nil, err
	}
	return load(ctx, c, "files", data, dir)
}

// load runs test/bench/load in a container.
func load(ctx context.Context, c subject.Container, args ...string) (figures, error) {
	var out bytes.Buffer
	if err := c.Exec(ctx, &out, append([]string{subject.Load}, args...)...); err != nil {
		return nil, err
	}
	var f figures
	if err := json.Unmarshal(out.Bytes(), &f); err != nil {
		return nil, fmt.Errorf("figures of load: %w: %.200q", err, out.String())
	}
	return f, nil
}

// network measures what a server in the first pod receives: of the host, then of
// the second pod.
func network(ctx context.Context, t trial) (figures, error) {
	const seconds = "2"
	server, ok := t.containers[0].(subject.Networked)
	if !ok {
		return nil, errors.New("its containers have no network")
	}
	addr, err := server.Address(ctx)
	if err != nil {
		return nil, err
	}
	f := figures{}
	for _, way := range []struct {
		name, port string
		send       func(addr string) error
	}{
		{"in", "5201", func(addr string) error { return server.Outside(ctx, "send", addr, seconds) }},
		{"between", "5202", func(addr string) error {
			return t.containers[1].Exec(ctx, io.Discard, subject.Load, "send", addr, seconds)
		}},
	} {
		var (
			got  figures
			gerr error
			work sync.WaitGroup
		)
		work.Go(func() { got, gerr = load(ctx, t.containers[0], "serve", way.port) })
		serr := way.send(net.JoinHostPort(addr, way.port))
		work.Wait()
		if err := errors.Join(serr, gerr); err != nil {
			return nil, fmt.Errorf("%s: %w", way.name, err)
		}
		f[way.name] = got["received"]
	}
	return f, nil
}

// wait lets time pass.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// available is the memory of the host that can be had, in MiB.
func available() (float64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %f kB", &kib); n == 1 {
			return kib / 1024, nil
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}
