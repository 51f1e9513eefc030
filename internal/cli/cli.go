// Package cli is the program kata, the person's tool: it runs an image in a
// virtual machine of its own and looks after what it started. The verbs and
// flags are those of Docker where the thing is the same.
package cli

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/seed-efd44b36/kata/internal/command"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/image"
	"github.com/seed-efd44b36/kata/internal/version"
	"github.com/spf13/cobra"
)

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
	p := command.Program{Name: "kata", Root: newRoot, Code: func(verb string) int {
		if verb == "run" || verb == "exec" {
			return command.Failed
		}
		return 1
	}}
	return p.Main(args)
}

// Annotations of commands.
const (
	noConfig = "no-config" // needs no configuration, and no root
	anyUser  = "any-user"  // needs no root
)

// group is a command that only has commands below it.
func group(use, short, long string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long,
		Args:        cobra.NoArgs,
		Annotations: map[string]string{noConfig: "true"},
		RunE:        func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(commands...)
	return cmd
}

// newRoot builds the command tree. release gives signals back to a command
// that handles them itself.
func newRoot(release func()) *cobra.Command {
	a := &app{out: os.Stdout, errOut: os.Stderr}
	root := &cobra.Command{
		Use:     "kata COMMAND",
		Version: version.String(),
		Short:   "Run containers, each in a virtual machine of its own",
		// Flags before a verb are the program's, whatever the verb's are called.
		TraverseChildren: true,
		Args:             unknown,
		Annotations:      map[string]string{noConfig: "true"},
		RunE:             func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Annotations[noConfig] != "" {
				return nil
			}
			if cmd.Annotations[anyUser] == "" && os.Geteuid() != 0 {
				return fmt.Errorf("%s needs root: run it with sudo", cmd.CommandPath())
			}
			return a.load()
		},
	}
	root.SetVersionTemplate(ownVersion())
	root.PersistentFlags().StringVar(&a.configPath, "config", "", "configuration file (default "+config.File+")")
	root.AddCommand(
		a.runCommand(release), a.execCommand(release), a.psCommand(), a.logsCommand(), a.traceCommand(), a.stopCommand(), a.killCommand(),
		a.rmCommand(), a.pullCommand(), a.imagesCommand(), a.rmiCommand(), a.gcCommand(), a.configCommand(), a.imageCommand(), a.templateCommand(), a.installCommand(),
		a.uninstallCommand(), versionCommand(),
	)
	return root
}

// unknown refuses a word that is no command.
func unknown(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("unknown command %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		err = fmt.Errorf("%w (did you mean %s?)", err, strings.Join(near, ", "))
	}
	return err
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
