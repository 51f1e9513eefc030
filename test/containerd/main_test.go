//go:build integration

package containerd

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/seed-efd44b36/kata/test/harness"
)

// runtimes are what each table is run with: what passes with runc on this
// machine has to pass with kata.
var runtimes = []runtimeEntry{
	{name: "runc", shim: "io.containerd.runc.v2"},
	{name: "kata", shim: "io.containerd.kata.v2"},
}

// sandboxer is kata where the shim itself is the sandbox of a pod, for containerd 2.
var sandboxer = runtimeEntry{name: "kata-sandboxer", shim: "io.containerd.kata.v2"}

type runtimeEntry struct {
	name string // and handler of the CRI
	shim string
}

// env is the installation that all tests share, network the namespace that
// their daemons are in.
var (
	env     *harness.Env
	network *Network
	daemons pool
)

func TestMain(m *testing.M) { harness.Main(m, "containerd", run) }

// maxParallel is how many tests run at a time at most, each of which has a
// virtual machine.
const maxParallel = 3

func limitParallel() error {
	f := flag.Lookup("test.parallel")
	if os.Getenv("KATA_LONG") != "" {
		return f.Value.Set(strconv.Itoa(podsAtOnce))
	}
	if n, err := strconv.Atoi(f.Value.String()); err == nil && n <= maxParallel {
		return nil
	}
	return f.Value.Set(strconv.Itoa(maxParallel))
}

// run runs all tests between two looks at the host.
func run(m *testing.M) (code int, err error) {
	if err := limitParallel(); err != nil {
		return 1, err
	}
	e, remove, err := harness.New("")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	env = e
	// Made before anything waits for it.
	if err := env.Prepare(context.Background()); err != nil {
		return 1, err
	}
	env.Watch(LookSockets)
	before, err := env.Snap()
	if err != nil {
		return 1, err
	}
	if network, err = NewNetwork(filepath.Base(filepath.Dir(env.State))); err != nil {
		return 1, err
	}
	if err := buildProbe(probeDir()); err != nil {
		return 1, err
	}
	code = m.Run()
	err = errors.Join(daemons.stop(), network.Remove())
	left, lerr := env.Leaks(before)
	if lerr == nil && len(left) > 0 {
		lerr = fmt.Errorf("left on the host after all tests:\n  %s", strings.Join(left, "\n  "))
	}
	return code, errors.Join(err, lerr, env.End())
}

// pool has the daemons that tests share, each started when the first one asks.
type pool struct {
	mu      sync.Mutex
	running map[string]*Daemon // guarded by mu
}

// releases are what tests run with, by the names of subtests.
var releases = map[string]func(context.Context) (Release, error){
	"debian": Debian,
	"module": func(ctx context.Context) (Release, error) {
		// KATA_CONTAINERD asks for another release of containerd 2.
		return Module(ctx, cmp.Or(os.Getenv("KATA_CONTAINERD"), ModuleVersion))
	},
}

// get returns the shared daemon of a release.
func (p *pool) get(t *testing.T, release string) *Daemon {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.running[release]; d != nil {
		return d
	}
	d := newDaemon(t, release, release, nil)
	if p.running == nil {
		p.running = make(map[string]*Daemon)
	}
	p.running[release] = d
	return d
}

func (p *pool) stop() error {
	var errs []error
	for _, d := range p.running {
		errs = append(errs, d.Stop())
		d.RemoveCgroups()
	}
	return errors.Join(errs...)
}

// newDaemon starts a daemon with the images that most tests need. configure, when
// it is not nil, replaces the configuration by kata itself.
func newDaemon(t *testing.T, release, name string, configure func(d *Daemon) error) *Daemon {
	t.Helper()
	r, err := releases[release](t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(env, r, network, name)
	if err != nil {
		t.Fatal(err)
	}
	if configure == nil {
		var flags []string
		if release == "debian" {
			flags = []string{"--untrusted-workloads"}
		}
		configure = func(d *Daemon) error { return d.Install(t.Context(), flags...) }
	}
	if err := configure(d); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, image := range []string{"pause", "busybox"} {
		if _, err := d.Import(t.Context(), image); err != nil {
			t.Fatal(errors.Join(err, d.Stop()))
		}
	}
	return d
}

// ownDaemon is newDaemon for one test.
func ownDaemon(t *testing.T, release, name string, configure func(d *Daemon) error) *Daemon {
	t.Helper()
	d := newDaemon(t, release, name, configure)
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
		d.RemoveCgroups()
		if t.Failed() {
			t.Logf("containerd said:\n%s", d.Log())
		}
	})
	return d
}

// needKata skips a test of the shim where it is not built.
func needKata(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(env.Bin, "containerd-shim-kata-v2")); err != nil {
		t.Skip("containerd-shim-kata-v2 is not built")
	}
}

// each runs a test with each release and runtime, as subtests of those names.
func each(t *testing.T, test func(t *testing.T, c ctr)) {
	t.Helper()
	eachOf(t, func(string) []runtimeEntry { return runtimes }, test)
}

// eachPod is each for tests of pods, which have one more way to be made.
func eachPod(t *testing.T, test func(t *testing.T, c ctr)) {
	t.Helper()
	eachOf(t, func(release string) []runtimeEntry {
		if release == "module" {
			return append(slices.Clone(runtimes), sandboxer)
		}
		return runtimes
	}, test)
}

// eachPodLong is eachPod with KATA_LONG, and each without.
func eachPodLong(t *testing.T, test func(t *testing.T, c ctr)) {
	t.Helper()
	if os.Getenv("KATA_LONG") == "" {
		each(t, test)
		return
	}
	eachPod(t, test)
}

func eachOf(t *testing.T, list func(release string) []runtimeEntry, test func(t *testing.T, c ctr)) {
	t.Helper()
	t.Parallel()
	for _, release := range []string{"debian", "module"} {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			for _, r := range list(release) {
				t.Run(r.name, func(t *testing.T) {
					if r.name != "runc" {
						needKata(t)
					}
					test(t, ctr{Daemon: daemons.get(t, release), runtime: r.name, shim: r.shim})
				})
			}
		})
	}
}
