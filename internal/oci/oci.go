// Package oci is the program kata-runtime: the command line that container
// engines call, and the operator's view of the host and its sandboxes.
package oci

import (
	"fmt"
	"io"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/command"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/oci/engine"
	"github.com/seed-efd44b36/kata/internal/version"
	"github.com/spf13/cobra"
)

// defaultRoot is where the containers are of who names no root.
const defaultRoot = "/run/kata-runtime"

// app is what every command needs.
type app struct {
	conf       config.Config
	configPath string
	log        logFile
	out        io.Writer
	errOut     io.Writer
}

// Main runs the program and returns its exit code.
func Main(args []string) int {
	a := &app{out: os.Stdout, errOut: os.Stderr}
	p := command.Program{Name: "kata-runtime", Root: a.newRoot, Told: a.log.failure, Code: func(verb string) int {
		if verb == "exec" {
			return 255 // as runc: 1 may be the command's own
		}
		return 1
	}}
	return p.Main(args)
}

// newRoot builds the command tree. release gives signals back to a command
// that handles them itself.
func (a *app) newRoot(release func()) *cobra.Command {
	var rootless string
	verbs := &engine.Verbs{Out: a.out, ErrOut: a.errOut, Warn: a.log.warning, Work: a.work}
	root := &cobra.Command{
		Use:     "kata-runtime",
		Version: version.String(),
		Short:   "OCI runtime that runs containers in virtual machines",
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := engine.CheckRootless(rootless); err != nil {
				return err
			}
			if cmd.Annotations[engine.NoConfig] != "" {
				return nil
			}
			l, err := config.Load(a.configPath)
			if err != nil {
				return err
			}
			a.conf = l.Config
			verbs.Conf, verbs.ConfigPath, verbs.RootGiven = l.Config, a.configPath, cmd.Flags().Changed("root")
			return nil
		},
	}
	root.SetVersionTemplate(versions())
	// Upstream's name for the flag is kept beside the plain one.
	root.PersistentFlags().StringVar(&a.configPath, "config", "", "configuration file (default "+config.File+")")
	root.PersistentFlags().StringVar(&a.configPath, "kata-config", "", "the same as --config")
	_ = root.PersistentFlags().MarkHidden("kata-config")
	f := root.PersistentFlags()
	f.StringVar(&verbs.Root, "root", defaultRoot, "`directory` of the state of containers")
	f.StringVar(&a.log.path, "log", "", "append errors to this `file`, too")
	f.StringVar(&a.log.format, "log-format", "text", "its format: text or json")
	f.StringVar(&rootless, "rootless", "auto", "refused if true: virtual machines need root on the host")
	f.Bool("debug", false, "accepted; runtime.debug of the configuration is what counts")
	f.Bool("systemd-cgroup", false, "accepted: cgroups paths are understood in both forms")
	f.String("criu", "", "accepted: there are no checkpoints")
	_ = f.MarkHidden("criu")
	root.AddCommand(verbs.Commands(release)...)
	root.AddCommand(a.consoleCommand(), a.logsCommand(), a.traceCommand(),
		a.checkCommand(), a.envCommand(), a.versionCommand())
	return root
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:         "version",
		Short:       "Print the version",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{engine.NoConfig: "true"},
		Run:         func(*cobra.Command, []string) { fmt.Fprint(a.out, versions()) },
	}
}

// versions are those of the program and of the specification.
func versions() string {
	return fmt.Sprintf("kata-runtime  : %s\n   commit   : %s\n   OCI specs: %s\n", version.Version, version.Commit, specs.Version)
}
