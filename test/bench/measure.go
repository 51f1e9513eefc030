package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/owner"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/test/harness"
)

const (
	container = "bench" // name of the container that stays
	idleTime  = 5 * time.Second
	// streamMiB is what is written to measure throughput.
	streamMiB = 512
)

// Parts of a run.
const (
	partMemory = "memory"
	partExec   = "exec"
	partStdout = "stdout"
	partStart  = "start"
	partEngine = "containerd"
)

func parts() []string { return []string{partMemory, partExec, partStdout, partStart, partEngine} }

// bench is one run in the making.
type bench struct {
	env    *harness.Env
	dir    string
	image  string
	bare   *bareMachine
	runc   *runc // nil when there is none
	result *result
	only   string // the only part to measure, "" for all
	step   func(string)
}

// wants tells whether a part is to be measured.
func (b *bench) wants(part string) bool { return b.only == "" || b.only == part }

// measure measures everything, or only one part.
func measure(ctx context.Context, o options, step func(string)) (_ *result, err error) {
	env, remove, err := harness.New("")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	b := &bench{env: env, dir: filepath.Dir(env.Data), only: o.only, step: step, result: &result{Date: today()}}
	step("images")
	if b.image, err = harness.Image(ctx, "busybox"); err != nil {
		return nil, err
	}
	// The program that execs run is in a volume.
	if err := os.MkdirAll(b.volume(), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(b.volume(), "hello"), program("hello\n", exit), 0o755); err != nil {
		return nil, err
	}
	if err := b.kata(ctx, "run", "--rm", "--network", "none", b.image, "true"); err != nil {
		return nil, fmt.Errorf("first container: %w", err)
	}
	if b.runc, err = newRunc(ctx, b); err != nil {
		return nil, err
	}
	if err := b.running(ctx, 4*o.n); err != nil {
		return nil, err
	}
	if b.wants(partStart) {
		if err := b.starts(ctx, o.n); err != nil {
			return nil, err
		}
	}
	if b.wants(partEngine) {
		if err := b.engines(ctx, o); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(b.result.Figures, func(x, y figure) int { return order(x.Name) - order(y.Name) })
	return b.result, nil
}

// order is that of the table.
func order(name string) int {
	return slices.Index([]string{
		"qemu_alone", "cold_start", "cold_start_ratio", "exec_static", "exec_ratio", "exec_busybox", "stdout", "qemu_pss", "proxy_pss", "agent_rss",
		"ctr_run", "ctr_run_ratio", "pod_start", "pod_start_ratio", "cri_exec", "cri_exec_ratio", "container_pss", "shim_pss", "pod_pss",
		"pods_at_once", "pods_at_once_failed",
	}, name)
}

func (b *bench) volume() string { return filepath.Join(b.dir, "volume") }

func (b *bench) add(name, what, unit string, s, runc samples) {
	b.result.Figures = append(b.result.Figures, newFigure(name, what, unit, s, runc))
}

// note adds a remark to the tables.
func (b *bench) note(format string, args ...any) {
	b.result.Notes = append(b.result.Notes, fmt.Sprintf(format, args...))
}

// kata runs `kata` to its end, which has to be a success.
func (b *bench) kata(ctx context.Context, args ...string) error {
	r, err := b.env.Run(ctx, nil, "kata", args...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("kata %s: exit code %d: %s", strings.Join(args, " "), r.Code, r.Stderr)
	}
	return err
}

// running measures a container that stays.
func (b *bench) running(ctx context.Context, n int) (err error) {
	b.step("running container")
	args := []string{"run", "-d", "--name", container, "--network", "none", "-v", b.volume() + ":/bench:ro", b.image, "sleep", "100000"}
	if err := b.kata(ctx, args...); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, b.kata(context.WithoutCancel(ctx), "rm", "-f", container))
	}()
	if b.runc != nil {
		if err := b.runc.stay(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.runc.end(context.WithoutCancel(ctx))) }()
	}
	st, err := b.look(ctx)
	if err != nil {
		return err
	}
	for _, part := range []struct {
		name    string
		measure func() error
	}{
		{partMemory, func() error { return b.memory(ctx, st) }},
		{partExec, func() error { return b.execs(ctx, n) }},
		{partStdout, func() error { return b.throughput(ctx) }},
	} {
		if b.wants(part.name) {
			if err := part.measure(); err != nil {
				return err
			}
		}
	}
	return nil
}

// execs measures further commands in the container.
func (b *bench) execs(ctx context.Context, n int) error {
	for _, e := range []struct {
		name, what string
		command    []string
	}{
		{"exec_static", "exec of a static program in a running container", []string{"/bench/hello"}},
		{"exec_busybox", "exec of a dynamic one (busybox)", []string{"/bin/true"}},
	} {
		b.step(e.what)
		var ours, theirs, ratio samples
		for range n {
			t, err := took(b.env.Command(ctx, "kata", append([]string{"exec", container}, e.command...)...))
			if err != nil {
				return err
			}
			ours = append(ours, t*1000)
			if b.runc != nil {
				its, err := took(b.runc.exec(ctx, e.command...))
				if err != nil {
					return err
				}
				theirs, ratio = append(theirs, its*1000), append(ratio, t/its)
			}
		}
		b.add(e.name, e.what, "ms", ours, theirs)
		if e.name == "exec_static" && len(ratio) > 0 {
			b.add("exec_ratio", "that to runc's", "times", ratio, nil)
		}
	}
	return nil
}

// throughput measures standard output through a pipe.
func (b *bench) throughput(ctx context.Context) error {
	b.step("standard output")
	command := []string{"dd", "if=/dev/zero", "bs=1M", fmt.Sprintf("count=%d", streamMiB)}
	var ours, theirs samples
	for range 3 {
		v, err := rate(b.env.Command(ctx, "kata", append([]string{"exec", container}, command...)...))
		if err != nil {
			return err
		}
		ours = append(ours, v)
		if b.runc != nil {
			if v, err = rate(b.runc.exec(ctx, command...)); err != nil {
				return err
			}
			theirs = append(theirs, v)
		}
	}
	b.add("stdout", "standard output through a pipe", "MB/s", ours, theirs)
	return nil
}

// look finds out about the one sandbox that there is, and makes the machine
// that its start is compared with.
func (b *bench) look(ctx context.Context) (report.Sandbox, error) {
	states, err := report.List(b.env.State)
	if err != nil {
		return report.Sandbox{}, err
	}
	if len(states) != 1 {
		return report.Sandbox{}, fmt.Errorf("%d sandboxes, want 1", len(states))
	}
	st := states[0]
	b.result.Machine = describe(ctx, st.Kernel, st.Accel)
	conf, err := config.Load(b.env.Config)
	if err != nil {
		return report.Sandbox{}, err
	}
	h, r := conf.Config.Hypervisor, conf.Config.Runtime
	image, err := (&guestimage.Builder{CacheDir: r.CacheDir, Agent: filepath.Join(b.env.Bin, "kata-agent"), Kernel: h.Kernel, Modules: h.KernelModules}).Ensure(ctx)
	if err != nil {
		return report.Sandbox{}, err
	}
	b.bare, err = newBareMachine(b.dir, image.Kernel.VMLinux, st.Accel)
	return st, err
}

// memory measures what an idle sandbox takes.
func (b *bench) memory(ctx context.Context, st report.Sandbox) error {
	b.step("memory")
	if err := idle(ctx); err != nil {
		return err
	}
	for _, p := range []struct {
		name, what string
		pid        int
	}{
		{"qemu_pss", "QEMU, idle, PSS (of a machine with the default size)", st.VMMPID},
		{"proxy_pss", "kata-proxy, idle, PSS", st.OwnerPID},
	} {
		v, err := pss(p.pid)
		if err != nil {
			return err
		}
		b.add(p.name, p.what, "MiB", samples{v}, nil)
	}
	rss, err := agentRSS(filepath.Join(b.env.State, st.ID, owner.LogFile))
	if err != nil {
		return err
	}
	b.add("agent_rss", "agent in the guest, after the boot, RSS", "MiB", samples{rss}, nil)
	return nil
}

// pss returns the proportional share of a process's memory in MiB.
func pss(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, fmt.Errorf("memory: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "Pss: %f kB", &kib); n == 1 {
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("memory of process %d: no Pss", pid)
}

// agentRSS finds in the log what the agent has told of itself, in MiB.
func agentRSS(path string) (float64, error) {
	log, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("memory of the agent: %w", err)
	}
	for line := range bytes.Lines(log) {
		var entry struct {
			RSS float64 `json:"agent_rss_bytes"`
		}
		if json.Unmarshal(line, &entry) == nil && entry.RSS > 0 {
			return entry.RSS / (1 << 20), nil
		}
	}
	return 0, fmt.Errorf("memory of the agent: not in %s", path)
}

// starts measures cold starts, in turns with QEMU alone and runc.
func (b *bench) starts(ctx context.Context, n int) error {
	b.step("cold starts")
	var bare, ours, theirs, ratio samples
	for range n {
		alone, err := b.bare.boot(ctx)
		if err != nil {
			return err
		}
		start, err := untilOutput(b.env.Command(ctx, "kata", "run", "--rm", "--network", "none", b.image, "echo", "started"), first)
		if err != nil {
			return fmt.Errorf("cold start: %w", err)
		}
		bare, ours, ratio = append(bare, alone), append(ours, start), append(ratio, start/alone)
		if b.runc != nil {
			if start, err = untilOutput(b.runc.run(ctx, "echo", "started"), first); err != nil {
				return fmt.Errorf("runc: %w", err)
			}
			theirs = append(theirs, start)
		}
	}
	b.add("qemu_alone", "QEMU alone with the same kernel, to /init", "s", bare, nil)
	b.add("cold_start", "`kata run` to the first output", "s", ours, theirs)
	b.add("cold_start_ratio", "the second to the first", "times", ratio, nil)
	return nil
}

// took returns the seconds that the command takes.
func took(cmd *exec.Cmd) (float64, error) {
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
	}
	return time.Since(start).Seconds(), nil
}

// untilOutput returns the seconds until enough says so of what the command has
// written, then asks the command to end unless it does so by itself.
func untilOutput(cmd *exec.Cmd, enough func([]byte) bool) (float64, error) {
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		if enough(buf[:n]) {
			t := time.Since(start).Seconds()
			return t, end(cmd, out)
		}
		if err != nil {
			return 0, errors.Join(fmt.Errorf("%s: ended without the output: %s", cmd.Args[0], errOut.Bytes()), cmd.Wait())
		}
	}
}

// end waits for a command that has said what it was run for. QEMU does not end
// by itself; it is killed.
func end(cmd *exec.Cmd, out io.Reader) error {
	if strings.Contains(filepath.Base(cmd.Args[0]), "qemu") {
		err := cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		return err
	}
	_, _ = io.Copy(io.Discard, out) // Wait tells
	return cmd.Wait()
}

// rate returns the megabytes of output a second, from the first byte on.
func rate(cmd *exec.Cmd) (float64, error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	buf := make([]byte, 256<<10)
	total, err := out.Read(buf)
	if err != nil {
		return 0, errors.Join(err, cmd.Wait())
	}
	start := time.Now()
	for err == nil {
		var n int
		n, err = out.Read(buf)
		total += n
	}
	t := time.Since(start).Seconds()
	if err := cmd.Wait(); err != nil {
		return 0, err
	}
	if total != streamMiB<<20 {
		return 0, fmt.Errorf("standard output: %d bytes, want %d", total, streamMiB<<20)
	}
	return float64(total) / 1e6 / t, nil
}
