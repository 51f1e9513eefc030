package subject

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/test/gobuild"
	"github.com/seed-efd44b36/kata/test/harness"
)

// runtime is what containers are run with.
type runtime struct {
	name string
	// fronts are the front ends that it can be behind.
	fronts []string
	// lacks is why it is not behind the others, for the report.
	lacks string
	// ready finds or makes what it needs; its error is why the runtime is left out.
	ready func(ctx context.Context, r *Rig) (tool, error)
}

// tool is a runtime that is ready: either a configuration of ours, or a program
// with runc's command line.
type tool struct {
	env *harness.Env
	// binary is the program, about is what it says of its version.
	binary, about string
	// without are the verbs that it does not have.
	without []string
}

// gvisor is the version of the Go module that runsc-go is built from. It is one
// of the branch go, which `go build` can build.
const gvisor = "0.0.0-20260905035102-160fafc42237"

// runtimes is the table of them, in the order of the report.
func runtimes() []runtime {
	const (
		// Debian has no other shim, and of the Go module none goes with containerd 1.6.
		noPods = "no pods: runc's shim, which runs it, cannot start their second container"
		fewer  = "through the front ends named: the others tell nothing that is new"
	)
	return []runtime{
		{"kata-cold", []string{Ctr, CRI, OCI, CLI}, "", kata(setting{"factory", "enable_template", "false"})},
		{"kata-template", []string{Ctr, CRI, OCI, CLI}, "", kata(setting{"factory", "enable_template", "true"})},
		{"kata-warm", []string{Ctr, CRI, OCI, CLI}, "", kata(setting{"factory", "enable_template", "true"}, setting{"factory", "vm_cache_number", "4"})},
		{"kata-warm-1", []string{Ctr}, fewer, kata(setting{"factory", "enable_template", "true"}, setting{"factory", "vm_cache_number", "1"})},
		{"kata-tuned", []string{Ctr, CLI}, fewer, tuned(setting{"factory", "enable_template", "true"})},
		{"runc", []string{Ctr, CRI, OCI}, "", packaged("runc", nil, "exec runc \"$@\"")},
		// It refuses a host that has cgroups of version 2 beside those of version 1.
		{"crun", []string{Ctr, CRI, OCI}, "", packaged("crun", []string{"events"}, `if mountpoint -q /sys/fs/cgroup/unified; then
	exec unshare -m --propagation slave sh -c 'umount /sys/fs/cgroup/unified; exec crun "$@"' crun "$@"
fi
exec crun "$@"`)},
		// Without the right to make network devices, and with cgroups of version 1, it
		// does not run but so.
		{"runsc-debian", []string{Ctr, OCI}, noPods, packaged("runsc", []string{"update"}, `exec runsc --platform=ptrace --network=none --ignore-cgroups "$@"`)},
		{"runsc-go", []string{Ctr, OCI}, noPods, runscGo},
	}
}

// setting is a key of our configuration.
type setting struct{ section, key, value string }

// kata prepares a configuration of ours. A setting that the programs do not know
// yet makes the runtime unavailable, unless it switches something off.
func kata(settings ...setting) func(context.Context, *Rig) (tool, error) {
	return func(ctx context.Context, r *Rig) (tool, error) {
		known, err := r.env.Run(ctx, nil, "kata", "config", "show")
		if err != nil {
			return tool{}, err
		}
		lines, err := linesOf(known.Stdout, settings)
		if err != nil {
			return tool{}, err
		}
		env, err := r.configure(lines)
		return tool{env: env}, err
	}
}

// linesOf writes settings as lines of a configuration, of which shown is one with
// all keys. What a build does not know is an error, but for what it therefore does
// not do anyway.
func linesOf(shown string, settings []setting) (string, error) {
	var lines strings.Builder
	section := ""
	for _, s := range settings {
		if !strings.Contains("\n"+shown, "\n"+s.key+" =") {
			if s.value == "false" {
				continue
			}
			return "", fmt.Errorf("not there yet: `kata config show` knows no %s", s.key)
		}
		if s.section != section {
			section = s.section
			fmt.Fprintf(&lines, "[%s]\n", section)
		}
		fmt.Fprintf(&lines, "%s = %s\n", s.key, s.value)
	}
	return lines.String(), nil
}

// tuned is kata with the kernel of guest/kernel/build.sh.
func tuned(settings ...setting) func(context.Context, *Rig) (tool, error) {
	return func(ctx context.Context, r *Rig) (tool, error) {
		kernel := filepath.Join(config.Default().Runtime.CacheDir, "kernel", "tuned", "vmlinux")
		if _, err := os.Stat(kernel); err != nil {
			return tool{}, fmt.Errorf("there is no tuned kernel: %w; run: make kernel", err)
		}
		return kata(append(settings, setting{"hypervisor", "kernel", strconv.Quote(kernel)})...)(ctx, r)
	}
}

// packaged prepares a program of a Debian package of the same name, behind a
// script that makes it run here.
func packaged(name string, without []string, script string) func(context.Context, *Rig) (tool, error) {
	return func(ctx context.Context, r *Rig) (tool, error) {
		if _, err := exec.LookPath(name); err != nil {
			return tool{}, fmt.Errorf("not installed: apt-get install %s", name)
		}
		binary, err := r.script(name+"-debian", script)
		return tool{binary: binary, without: without, about: version(ctx, name)}, err
	}
}

// runscGo builds a current runsc.
func runscGo(ctx context.Context, r *Rig) (tool, error) {
	r.Step("runsc " + gvisor)
	dir, err := gobuild.Program{
		Name: "runsc", Module: "gvisor.dev/gvisor", Version: gvisor,
		Packages: []string{"gvisor.dev/gvisor/runsc"}, Flags: []string{"-ldflags", "-s -w"},
	}.Build(ctx)
	if err != nil {
		return tool{}, err
	}
	binary, err := r.script("runsc-go", "exec "+filepath.Join(dir, "bin", "runsc")+` --platform=systrap --network=none --ignore-cgroups "$@"`)
	return tool{binary: binary, without: []string{"update"}, about: "runsc " + gvisor + " (systrap)"}, err
}

// version is the first line that a program says of itself.
func version(ctx context.Context, name string) string {
	out, err := exec.CommandContext(ctx, name, "--version").Output()
	if err != nil {
		return name
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// Names lists all subjects that the tables have, whether they run here or not.
func Names() []string {
	names := []string{QEMU}
	for _, r := range runtimes() {
		for _, f := range r.fronts {
			names = append(names, r.name+"/"+f)
		}
	}
	return names
}

// Order compares two names of subjects by their place in the tables.
func Order(a, b string) int {
	names := Names()
	return slices.Index(names, a) - slices.Index(names, b)
}
