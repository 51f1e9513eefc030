package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/attach"
	"github.com/seed-efd44b36/kata/internal/command"
	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/spec"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/spf13/cobra"
)

func (a *app) runCommand(release func()) *cobra.Command {
	bundle := "."
	cmd := &cobra.Command{
		Use:   "run [flags] CONTAINER-ID",
		Short: "Run an OCI bundle in a virtual machine of its own, in the foreground",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := filepath.Abs(bundle)
			if err != nil {
				return fmt.Errorf("bundle %s: %w", bundle, err)
			}
			return a.run(cmd.Context(), args[0], dir, release)
		},
	}
	cmd.Flags().StringVarP(&bundle, "bundle", "b", bundle, "directory of the bundle (config.json and root file system)")
	return cmd
}

// run boots a sandbox for one container, attaches to it, and ends both.
func (a *app) run(ctx context.Context, id, bundle string, release func()) (err error) {
	ctx = timeline.Program("kata-runtime").In(ctx)
	sp, err := spec.Load(bundle)
	if err != nil {
		return err
	}
	// What the spec asks for and cannot have is refused before a machine runs.
	plan, err := spec.Translate(sp, spec.Options{ID: id, SandboxID: id, Bundle: bundle})
	if err != nil {
		return err
	}
	c, err := proxy.Spawn(ctx, proxy.SpawnOptions{ID: id, StateDir: a.conf.Runtime.StateDir, ConfigPath: a.configPath})
	if err != nil {
		return err
	}
	defer func() {
		endCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, c.End(endCtx))
		_ = c.Close()
	}()
	resources, err := json.Marshal(sp.Linux.Resources)
	if err != nil {
		return fmt.Errorf("encode resources: %w", err)
	}
	if _, err := c.Boot(ctx, &proxyv1.BootRequest{Hostname: sp.Hostname, Netns: plan.NetNS, Resources: resources}); err != nil {
		return proxy.Explain(err)
	}
	tty := sp.Process.Terminal
	if _, err := c.Create(ctx, &proxyv1.CreateRequest{Id: id, Bundle: bundle, Stdin: true, Stdout: true, Stderr: !tty}); err != nil {
		return proxy.Explain(err)
	}
	s := &attach.Session{
		Client: c, Container: id, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, TTY: tty, Signals: true,
	}
	if err := s.Open(ctx); err != nil {
		return err
	}
	defer s.Close()
	if _, err := c.Start(ctx, &proxyv1.StartRequest{Container: id}); err != nil {
		return proxy.Explain(err)
	}
	release()
	resp, err := s.Run(context.WithoutCancel(ctx))
	if errors.Is(err, attach.ErrOutputClosed) {
		return command.ExitError(command.Piped)
	}
	if err != nil {
		return err
	}
	return a.exitOf(resp)
}

// exitOf turns the end of a process into the end of this program.
func (a *app) exitOf(resp *proxyv1.WaitResponse) error {
	if resp.GetReason() != "" {
		fmt.Fprintln(a.errOut, "kata-runtime: "+printable.Text(resp.GetReason(), 4000))
	}
	if code := resp.GetExitCode(); code != 0 {
		return command.ExitError(code)
	}
	return nil
}
