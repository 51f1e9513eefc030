package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/attach"
	"github.com/seed-efd44b36/kata/internal/command"
	"github.com/seed-efd44b36/kata/internal/image"
	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/runflags"
	"github.com/spf13/cobra"
)

// execFlags are those of `kata exec`.
type execFlags struct {
	interactive, tty, detach bool
	env                      []string
	workdir, user            string
}

func (a *app) execCommand(release func()) *cobra.Command {
	var fl execFlags
	cmd := &cobra.Command{
		Use:   "exec [flags] CONTAINER COMMAND [ARG...]",
		Short: "Run a further command in a running container",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.containers.find(args[0])
			if err != nil {
				return err
			}
			return a.exec(cmd.Context(), r, args[1:], fl, release)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&fl.interactive, "interactive", "i", false, "give the command this standard input")
	f.BoolVarP(&fl.tty, "tty", "t", false, "give the command a terminal")
	f.BoolVarP(&fl.detach, "detach", "d", false, "do not wait for the command")
	f.StringArrayVarP(&fl.env, "env", "e", nil, "set an environment variable (NAME=VALUE, or NAME to pass it on)")
	f.StringVarP(&fl.workdir, "workdir", "w", "", "working directory")
	f.StringVarP(&fl.user, "user", "u", "", "user (name or uid, with :group)")
	return cmd
}

func (a *app) exec(ctx context.Context, r record, args []string, fl execFlags, release func()) error {
	c, err := a.dial(ctx, r)
	if err != nil {
		return err
	}
	defer c.Close()
	p, err := a.execProcess(r, args, fl)
	if err != nil {
		return err
	}
	s := &attach.Session{Client: c, Container: r.ID, Exec: "exec-" + newID()[:16], TTY: fl.tty, Signals: true}
	if fl.detach {
		if err := s.Prepare(ctx, p); err != nil {
			return err
		}
		return s.Start(ctx)
	}
	s.Stdout, s.Stderr = os.Stdout, os.Stderr
	if fl.interactive {
		s.Stdin = os.Stdin
	}
	resp, err := s.RunExec(ctx, p, release)
	if errors.Is(err, attach.ErrOutputClosed) {
		return command.ExitError(command.Piped)
	}
	if resp != nil {
		err = errors.Join(exitOf(resp, a), err)
	}
	return err
}

// execProcess is the OCI process of an exec: the container's own, with what
// the flags change.
func (a *app) execProcess(r record, args []string, fl execFlags) (*specs.Process, error) {
	b, err := os.ReadFile(filepath.Join(a.containers.path(r.ID), "config.json"))
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", r.Name, err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", r.Name, err)
	}
	p := *spec.Process
	p.Args = args
	p.Terminal = fl.tty
	p.ConsoleSize = nil
	if fl.workdir != "" {
		p.Cwd = fl.workdir
	}
	if fl.user != "" {
		files, err := a.filesOf(r)
		if err != nil {
			return nil, err
		}
		if err := become(&p, files, fl.user); err != nil {
			return nil, err
		}
	}
	p.Env, err = runflags.MergeEnv(p.Env, fl.env, fl.tty)
	return &p, err
}

// become makes a process that of another user, with the capabilities of that
// user and, unless the container has a home of its own choice, with its home.
func become(p *specs.Process, files runflags.Files, user string) error {
	u, err := runflags.ResolveUser(files, user, nil)
	if err != nil {
		return err
	}
	old, err := runflags.Home(files, fmt.Sprint(p.User.UID))
	if err != nil {
		return err
	}
	home, err := runflags.Home(files, user)
	if err != nil {
		return err
	}
	p.User = u
	if p.Capabilities != nil {
		p.Capabilities = runflags.Capabilities(p.Capabilities.Bounding, u.UID)
	}
	if slices.Contains(p.Env, "HOME="+old) {
		p.Env, err = runflags.MergeEnv(p.Env, []string{"HOME=" + home}, false)
	}
	return err
}

// filesOf shows the files of a container as it sees them now.
func (a *app) filesOf(r record) (runflags.Files, error) {
	dir := a.containers.path(r.ID)
	img, err := image.MountedImage(dir)
	if errors.Is(err, fs.ErrNotExist) { // --rootfs
		return image.Tree{Dirs: []string{r.Image}}, nil
	}
	if err != nil {
		return nil, err
	}
	return a.images.Tree(img, dir), nil
}

// exitOf turns the end of a process into the end of this program.
func exitOf(resp *proxyv1.WaitResponse, a *app) error {
	if resp.GetReason() != "" {
		fmt.Fprintln(a.errOut, "kata: "+printable.Text(resp.GetReason(), 4000))
	}
	if resp.GetExitCode() != 0 {
		return command.ExitError(resp.GetExitCode())
	}
	return nil
}
