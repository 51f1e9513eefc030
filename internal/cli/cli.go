// Package cli is the program kata, the person's tool: it runs an image in a
// virtual machine of its own and looks after what it started. The verbs and
// flags are those of Docker where the thing is the same.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/image"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// Exit codes of docker's command line, for the same things.
const (
	codeKata    = 125 // kata itself failed
	codeDenied  = 126 // the command cannot be executed
	codeMissing = 127 // the command does not exist
)

// exitError carries the exit code of a process; it prints nothing.
type exitError int

// Error implements error.
func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// app is what every command needs.
type app struct {
	conf       config.Config
	configPath string
	images     *image.Store
	containers store
	out        io.Writer
	errOut     io.Writer
}

// Main runs the program and returns its exit code.
func Main(args []string) int {
	// SIGTERM during a pull or a boot unwinds what was begun. While a
	// container is attached, signals are the container's.
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
	fmt.Fprintln(os.Stderr, "kata: "+err.Error())
	switch {
	case errors.Is(err, sandbox.ErrCommandNotFound):
		return codeMissing
	case errors.Is(err, sandbox.ErrCommandDenied):
		return codeDenied
	}
	if verb, _, ferr := root.Find(args); ferr == nil && (verb.Name() == "run" || verb.Name() == "exec") {
		return codeKata
	}
	return 1
}

// newRoot builds the command tree. release gives signals back to a command
// that handles them itself.
func newRoot(release func()) *cobra.Command {
	a := &app{out: os.Stdout, errOut: os.Stderr}
	root := &cobra.Command{
		Use:           "kata",
		Short:         "Run containers, each in a virtual machine of its own",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Annotations["noconfig"] != "" {
				return nil
			}
			return a.load()
		},
	}
	root.PersistentFlags().StringVar(&a.configPath, "config", "", "configuration file (default "+config.File+")")
	root.AddCommand(
		a.runCommand(release), a.execCommand(release), a.psCommand(), a.logsCommand(), a.stopCommand(), a.killCommand(),
		a.rmCommand(), a.pullCommand(), a.imagesCommand(), a.gcCommand(), a.configCommand(), a.imageCommand(), versionCommand(),
	)
	return root
}

// load reads the configuration; every command but a few needs it.
func (a *app) load() error {
	l, err := config.Load(a.configPath)
	if err != nil {
		return err
	}
	a.conf = l.Config
	a.containers = newStore(a.conf)
	a.images = image.NewStore(a.imagesDir())
	return nil
}

// needRoot refuses early what only root can do.
func needRoot(what string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s needs root: run it with sudo", what)
	}
	return nil
}
