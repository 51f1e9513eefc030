package spec

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Translate divides a spec between host and guest. s is not changed. The error
// joins all problems, each naming its field and wrapping ErrInvalid or
// ErrUnsupported.
func Translate(s *specs.Spec, o Options) (*Plan, error) {
	guest, err := clone(s)
	if err != nil {
		return nil, fmt.Errorf("translate spec of %s: %w", o.ID, err)
	}
	t := translation{opts: o, plan: &Plan{Guest: guest, Join: map[string]string{}}}
	t.whole(guest)
	if err := t.err(); err != nil {
		return nil, fmt.Errorf("spec of container %s:\n%w", o.ID, err)
	}
	return t.plan, nil
}

// clone copies a spec by way of its JSON, which is what the guest gets.
func clone(s *specs.Spec) (*specs.Spec, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	c := &specs.Spec{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	return c, nil
}

// translation is one run of Translate: it turns the copy of the spec into the
// guest's and fills the plan.
type translation struct {
	problems
	opts  Options
	plan  *Plan
	bound []specs.LinuxDevice // block devices that came as bind mounts
}

func (t *translation) whole(g *specs.Spec) {
	if g.Version == "" {
		t.invalid("ociVersion", "it is missing")
	} else if !strings.HasPrefix(g.Version, "1.") {
		t.refuse("ociVersion", "%q is not a version 1 of the OCI runtime spec", g.Version)
	}
	for field, present := range map[string]bool{
		"windows": g.Windows != nil, "solaris": g.Solaris != nil, "zos": g.ZOS != nil, "freebsd": g.FreeBSD != nil,
	} {
		if present {
			t.refuse(field, "only Linux containers can be run")
		}
	}
	if g.VM != nil {
		t.refuse("vm", "the virtual machine is described by Kata's configuration, not by a container")
	}
	t.process(g.Process)
	t.root(g)
	t.hooks(g)
	t.mounts(g)
	t.linux(g)
	if g.Hooks == nil {
		g.Annotations = nil // they are for the host's tools
	}
}

func (t *translation) root(g *specs.Spec) {
	if g.Root == nil || g.Root.Path == "" {
		t.invalid("root.path", "it is missing")
		return
	}
	t.plan.Rootfs = t.hostPath(g.Root.Path)
	t.plan.RootReadonly = g.Root.Readonly
	g.Root.Path = path.Join(GuestShared, t.opts.ID, "rootfs")
	if t.opts.RootOnDisk {
		g.Root.Path = path.Join(GuestDisks, t.opts.ID)
	}
}

// hostPath makes a path of the spec absolute.
func (t *translation) hostPath(p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(t.opts.Bundle, p)
}

// bundleAnnotation has the path of the bundle, for the state that the guest gives to
// hooks (internal/agent/jail).
const bundleAnnotation = "io.katacontainers.bundle"

const (
	// maxHookSeconds is the longest timeout of a hook: a day.
	maxHookSeconds = 24 * 60 * 60
	// hookTimeout is that of one in the guest that names none (internal/agent/jail).
	hookTimeout = 30 * time.Second
)

// together is the sum of the hooks' timeouts.
func together(hooks []specs.Hook) (sum time.Duration) {
	for _, h := range hooks {
		if h.Timeout == nil {
			sum += hookTimeout
		} else {
			sum += time.Duration(*h.Timeout) * time.Second
		}
	}
	return sum
}

func (t *translation) hooks(g *specs.Spec) {
	h := g.Hooks
	if h == nil {
		return
	}
	g.Hooks = nil
	if len(h.StartContainer) > 0 {
		g.Hooks = &specs.Hooks{StartContainer: h.StartContainer}
		// What the guest tells them of the container.
		g.Annotations = maps.Clone(g.Annotations)
		if g.Annotations == nil {
			g.Annotations = map[string]string{}
		}
		g.Annotations[bundleAnnotation] = t.opts.Bundle
	}
	t.plan.Hooks = Hooks{
		InGuest:      together(h.StartContainer),
		BeforeCreate: slices.Concat(h.Prestart, h.CreateRuntime), //nolint:staticcheck // engines still use it
		AfterStart:   h.Poststart,
		AfterStop:    h.Poststop,
	}
	for field, list := range map[string][]specs.Hook{
		"hooks.prestart": h.Prestart, "hooks.createRuntime": h.CreateRuntime, //nolint:staticcheck // as above
		"hooks.startContainer": h.StartContainer, "hooks.poststart": h.Poststart, "hooks.poststop": h.Poststop,
	} {
		for _, hook := range list {
			if !filepath.IsAbs(hook.Path) {
				t.invalid(field, "path %q is not absolute", hook.Path)
			}
			if hook.Timeout != nil && (*hook.Timeout <= 0 || *hook.Timeout > maxHookSeconds) {
				t.invalid(field, "timeout %s of %q is not between 1 and %s seconds", strconv.Itoa(*hook.Timeout), hook.Path, strconv.Itoa(maxHookSeconds))
			}
		}
	}
	if list := h.CreateContainer; len(list) > 0 {
		t.refuse("hooks.createContainer", "%q is a program of the host and would have to run in the container's namespaces, which are in a virtual machine", list[0].Path)
	}
}

// process checks and translates the first process; see GuestProcess.
func (t *translation) process(p *specs.Process) {
	if p == nil {
		t.invalid("process", "it is missing")
		return
	}
	checkProcess(&t.problems, p)
	t.plan.Warnings = append(t.plan.Warnings, stripLabels(p)...)
}

// CheckProcess tells whether a process can be run in a container.
func CheckProcess(p *specs.Process) error {
	var ps problems
	if p == nil {
		ps.invalid("process", "it is missing")
	} else {
		checkProcess(&ps, p)
	}
	return ps.err()
}

// GuestProcess returns the process as the guest is to run it, and warnings
// about what it does not enforce. Use it for an exec after CheckProcess;
// Translate does both. p is not changed.
func GuestProcess(p *specs.Process) (guest *specs.Process, warnings []string) {
	c := *p
	return &c, stripLabels(&c)
}

// stripLabels takes out the labels of the host's security modules, whose
// policies are not loaded in the guest: engines set them on every container of
// a host that has such a module.
func stripLabels(p *specs.Process) (warnings []string) {
	if p.ApparmorProfile != "" {
		warnings = append(warnings, fmt.Sprintf("process.apparmorProfile %q is not applied: the guest has no AppArmor policy", clip(p.ApparmorProfile)))
	}
	if p.SelinuxLabel != "" {
		warnings = append(warnings, fmt.Sprintf("process.selinuxLabel %q is not applied: the guest has no SELinux policy", clip(p.SelinuxLabel)))
	}
	p.ApparmorProfile, p.SelinuxLabel = "", ""
	return warnings
}

func checkProcess(ps *problems, p *specs.Process) {
	if len(p.Args) == 0 || p.Args[0] == "" {
		ps.invalid("process.args", "there is no command")
	}
	for _, list := range [][]string{p.Args, p.Env, {p.Cwd}} {
		for _, s := range list {
			if strings.ContainsRune(s, 0) {
				ps.invalid("process", "%q contains a NUL character", s)
			}
		}
	}
	if !path.IsAbs(p.Cwd) {
		ps.invalid("process.cwd", "%q is not an absolute path", p.Cwd)
	}
	for _, r := range p.Rlimits {
		if !slices.Contains(rlimits(), r.Type) {
			ps.invalid("process.rlimits", "there is no limit %q", r.Type)
		} else if r.Soft > r.Hard {
			ps.invalid("process.rlimits", "the soft limit of %q is above the hard one", r.Type)
		}
	}
	if p.CommandLine != "" {
		ps.refuse("process.commandLine", "it is for Windows; use args")
	}
	if p.User.Username != "" {
		ps.refuse("process.user.username", "it is for Windows; use uid and gid")
	}
	if p.ExecCPUAffinity != nil {
		ps.refuse("process.execCPUAffinity", "the host's CPU numbers mean nothing in a virtual machine")
	}
}

// rlimits are the names of getrlimit(2).
func rlimits() []string {
	return []string{
		"RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_LOCKS", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE",
		"RLIMIT_NICE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_RSS", "RLIMIT_RTPRIO", "RLIMIT_RTTIME", "RLIMIT_SIGPENDING", "RLIMIT_STACK",
	}
}
