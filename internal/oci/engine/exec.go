package engine

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/attach"
	"github.com/seed-efd44b36/kata/internal/command"
	"github.com/seed-efd44b36/kata/internal/oci/record"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/internal/spec"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// execFlags are those of exec.
type execFlags struct {
	tty, detach, noNewPrivs bool

	user, cwd, process, pidFile, consoleSocket string
	apparmor, processLabel                     string
	env, caps, cgroups                         []string
	gids                                       []uint
	preserveFDs                                int
}

func (a *Verbs) execCommand(release func()) *cobra.Command {
	var fl execFlags
	cmd := &cobra.Command{
		Use:   "exec [flags] CONTAINER|SANDBOX [COMMAND [ARG...]]",
		Short: "Run a command, or a shell, in a container",
		Long: `Run a command in a container.

Of a container below --root it is what engines call: the environment is that of the
container's process, unless there is a --process.

Else it is for people, and the container that of any sandbox, whichever program
started it. Without a command it is a shell, which has a terminal where there is one
here. A pod is named by its id, if it has only one container, else the container. The
first letters of an id are enough.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, st, err := a.findContainer(args[0])
			if err == nil {
				return a.execInContainer(cmd.Context(), r, st, args[1:], fl, release)
			}
			if !errors.Is(err, record.ErrNotFound) && !errors.Is(err, record.ErrInvalidID) {
				return fmt.Errorf("exec failed: %w", err)
			}
			sandbox, ct, werr := a.Work(args[0])
			if werr != nil {
				return fmt.Errorf("exec failed: %w: %w", err, werr)
			}
			return a.operate(cmd.Context(), sandbox, ct, args[1:], fl, release)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&fl.tty, "tty", "t", false, "give the command a terminal")
	f.StringVarP(&fl.user, "user", "u", "", "run it as this user (UID or UID:GID)")
	f.StringVar(&fl.cwd, "cwd", "", "working directory in the container")
	f.StringArrayVarP(&fl.env, "env", "e", nil, "add a variable to the environment")
	f.UintSliceVarP(&fl.gids, "additional-gids", "g", nil, "further groups")
	f.StringArrayVarP(&fl.caps, "cap", "c", nil, "add a capability")
	f.BoolVar(&fl.noNewPrivs, "no-new-privs", false, "let it gain no privileges")
	f.StringVarP(&fl.process, "process", "p", "", "a `file` with the process, as in config.json")
	f.BoolVarP(&fl.detach, "detach", "d", false, "return when it runs")
	f.StringVar(&fl.pidFile, "pid-file", "", "write the pid of its kata-shim to this `file`")
	f.StringVar(&fl.consoleSocket, "console-socket", "", "send its terminal to this unix `socket`")
	f.StringVar(&fl.apparmor, "apparmor", "", "accepted: the guest has no AppArmor policy")
	f.StringVar(&fl.processLabel, "process-label", "", "accepted: the guest has no SELinux policy")
	f.Bool("ignore-paused", false, "of no use: in a paused container a command could not begin")
	f.IntVar(&fl.preserveFDs, "preserve-fds", 0, "refused unless 0: descriptors of the host cannot enter a virtual machine")
	f.StringArrayVar(&fl.cgroups, "cgroup", nil, "refused: cgroups below the container's are the guest's")
	return cmd
}

// execInContainer runs a command in a container of the engine's.
func (a *Verbs) execInContainer(ctx context.Context, r record.Record, st report.Status, args []string, fl execFlags, release func()) error {
	code, err := a.execStanding(ctx, r, st, args, fl, release)
	if err != nil {
		return fmt.Errorf("exec failed: %w", err)
	}
	if code != 0 {
		return command.ExitError(code)
	}
	return nil
}

// checkExec refuses what cannot be had.
func checkExec(r record.Record, st report.Status, fl execFlags) error {
	switch {
	case st == report.Stopped:
		return errors.New("cannot exec in a stopped container")
	case st == report.Paused:
		return errors.New("cannot exec in a paused container: it could not begin; resume it first")
	case st != report.Running:
		return fmt.Errorf("cannot exec in container %s: it is %s", r.ID, st)
	case fl.preserveFDs > 0:
		return errPreserveFDs
	case len(fl.cgroups) > 0:
		return errors.New("--cgroup: cgroups below the container's are the guest's")
	}
	return nil
}

// engineProcess is the process that an engine asks for.
func engineProcess(bundle string, args []string, fl execFlags) (*specs.Process, error) {
	if fl.process == "" {
		if len(args) == 0 {
			return nil, errors.New("process args cannot be empty")
		}
		return execProcess(bundle, args, fl)
	}
	b, err := os.ReadFile(fl.process)
	if err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	var p specs.Process
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("process %s: %w", fl.process, err)
	}
	return &p, nil
}

// execStanding runs a command with a kata-shim that stands for it, and returns when it
// runs, or with its exit code.
func (a *Verbs) execStanding(ctx context.Context, r record.Record, st report.Status, args []string, fl execFlags, release func()) (code int, err error) {
	if err := checkExec(r, st, fl); err != nil {
		return 0, err
	}
	p, err := engineProcess(r.Bundle, args, fl)
	if err != nil {
		return 0, err
	}
	s := stand{
		a: a, container: r.ID, exec: "exec-" + rand.Text(), sandbox: r.Sandbox, netns: netnsOf(r.Shim.PID),
		tty: p.Terminal, size: p.ConsoleSize, consoleSocket: fl.consoleSocket, detach: fl.detach,
	}
	if err := s.check(); err != nil {
		return 0, err
	}
	if err := s.spawn(ctx); err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			s.kill()
		}
	}()
	c, err := a.dial(ctx, r)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	session := &attach.Session{Client: c, Container: r.ID, Exec: s.exec, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, TTY: p.Terminal}
	if err := session.Prepare(ctx, p); err != nil {
		return 0, explainCommand(err)
	}
	if err := s.join(); err != nil {
		return 0, err // if it has not removed what was prepared, the container's end does
	}
	if err := session.Start(ctx); err != nil {
		return 0, explainCommand(err)
	}
	if fl.pidFile != "" {
		if err := writePID(fl.pidFile, s.child.PID); err != nil {
			return 0, err
		}
	}
	if fl.detach {
		return 0, s.leave()
	}
	return s.attend(release)
}

// operate runs a command, or a shell, for a person in a container of any sandbox.
func (a *Verbs) operate(ctx context.Context, sandbox string, ct report.Container, args []string, fl execFlags, release func()) error {
	if len(args) == 0 {
		args = []string{"sh"}
		fl.tty = fl.tty || term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd()))
	}
	p, err := execProcess(ct.Bundle, args, fl)
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", ct.ID, err)
	}
	c, err := proxy.Dial(ctx, a.Conf.Runtime.StateDir, sandbox)
	if err != nil {
		return err
	}
	defer c.Close()
	s := &attach.Session{
		Client: c, Container: ct.ID, Exec: "operator-" + rand.Text(),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, TTY: fl.tty, Signals: true,
	}
	resp, err := s.RunExec(ctx, p, release)
	if errors.Is(err, attach.ErrOutputClosed) {
		return command.ExitError(command.Piped)
	}
	return errors.Join(a.exitOf(resp), err)
}

// execProcess is the process of an exec: that of the container in the bundle,
// with what is asked for.
func execProcess(bundle string, args []string, fl execFlags) (*specs.Process, error) {
	sp, err := spec.Load(bundle)
	if err != nil {
		return nil, err
	}
	p := sp.Process
	p.Args, p.Terminal, p.ConsoleSize = args, fl.tty, nil
	fl.addTo(p)
	hasTerm := slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") })
	if fl.tty && !hasTerm {
		p.Env = append(p.Env, "TERM=xterm")
	}
	if fl.user == "" {
		return p, nil
	}
	uid, gid, both := strings.Cut(fl.user, ":")
	if !both {
		gid = "0"
	}
	for _, id := range []struct {
		text string
		to   *uint32
	}{{uid, &p.User.UID}, {gid, &p.User.GID}} {
		n, err := strconv.ParseUint(id.text, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %q: must be UID or UID:GID, in numbers", fl.user)
		}
		*id.to = uint32(n)
	}
	p.User.AdditionalGids = groups(fl.gids)
	return p, nil
}

// addTo adds to the container's process what the flags say.
func (fl execFlags) addTo(p *specs.Process) {
	if fl.cwd != "" {
		p.Cwd = fl.cwd
	}
	p.Env = append(p.Env, fl.env...)
	p.NoNewPrivileges = p.NoNewPrivileges || fl.noNewPrivs
	p.User.AdditionalGids = append(p.User.AdditionalGids, groups(fl.gids)...)
	if len(fl.caps) == 0 {
		return
	}
	if p.Capabilities == nil {
		p.Capabilities = &specs.LinuxCapabilities{}
	}
	for _, set := range []*[]string{&p.Capabilities.Bounding, &p.Capabilities.Effective, &p.Capabilities.Permitted} {
		*set = append(*set, fl.caps...)
	}
}

func groups(gids []uint) (list []uint32) {
	for _, g := range gids {
		list = append(list, uint32(g))
	}
	return list
}
