// Package oci is the program kata-runtime: the command line that container
// engines call, and the operator's view of the host and its sandboxes.
package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/version"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// exitError carries an exit code; it prints nothing.
type exitError uint32

// Error implements error.
func (e exitError) Error() string { return fmt.Sprintf("exit code %d", uint32(e)) }

// app is what every command needs.
type app struct {
	conf       config.Config
	configPath string
	out        io.Writer
	errOut     io.Writer
}

// Main runs the program and returns its exit code.
func Main(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	root := newRoot(stop)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var code exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintln(os.Stderr, "kata-runtime: "+err.Error())
	switch {
	case errors.Is(err, sandbox.ErrCommandNotFound):
		return 127
	case errors.Is(err, sandbox.ErrCommandDenied):
		return 126
	}
	return 1
}

// newRoot builds the command tree. release gives signals back to a command
// that handles them itself.
func newRoot(release func()) *cobra.Command {
	a := &app{out: os.Stdout, errOut: os.Stderr}
	root := &cobra.Command{
		Use:           "kata-runtime",
		Short:         "OCI runtime that runs containers in virtual machines",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Annotations["noconfig"] != "" {
				return nil
			}
			l, err := config.Load(a.configPath)
			if err != nil {
				return err
			}
			a.conf = l.Config
			return nil
		},
	}
	// Upstream's name for the flag is kept beside the plain one.
	root.PersistentFlags().StringVar(&a.configPath, "config", "", "configuration file (default "+config.File+")")
	root.PersistentFlags().StringVar(&a.configPath, "kata-config", "", "the same as --config")
	_ = root.PersistentFlags().MarkHidden("kata-config")
	root.AddCommand(a.runCommand(release), a.listCommand(), a.checkCommand(), a.envCommand(), a.versionCommand())
	return root
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:         "version",
		Short:       "Print the version",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{"noconfig": "true"},
		Run: func(*cobra.Command, []string) {
			fmt.Fprintf(a.out, "kata-runtime  : %s\n   commit   : %s\n   OCI specs: %s\n", version.Version, version.Commit, specs.Version)
		},
	}
}
