package cli

import (
	"fmt"
	"path/filepath"

	"github.com/seed-efd44b36/kata/internal/install"
	"github.com/seed-efd44b36/kata/internal/program"
	"github.com/spf13/cobra"
)

// engineCommands are the verbs for engines that call kata-runtime: either those
// that install or those that undo it.
func (a *app) engineCommands(short string, docker func(install.Docker) (install.Change, error), dropIn func(install.DropIn) (install.Change, error)) []*cobra.Command {
	plain := func(of func(path, dir string) install.DropIn) func(path, runtime string) (install.Change, error) {
		return func(path, runtime string) (install.Change, error) { return dropIn(of(path, filepath.Dir(runtime))) }
	}
	var list []*cobra.Command
	for _, engine := range []struct {
		name, title, path, remains string
		plan                       func(path, runtime string) (install.Change, error)
	}{
		{
			"docker", "Docker", install.DockerConfig, "  systemctl reload docker, or kill -HUP its dockerd",
			func(path, runtime string) (install.Change, error) {
				return docker(install.Docker{Config: path, Runtime: runtime})
			},
		},
		{"podman", "Podman", install.PodmanConfig, "", plain(install.Podman)},
		{"crio", "CRI-O", install.CRIOConfig, "  systemctl restart crio", plain(install.CRIO)},
	} {
		path, dryRun := "", false
		cmd := &cobra.Command{
			Use:         engine.name,
			Short:       short + ": " + engine.title,
			Args:        cobra.NoArgs,
			Annotations: map[string]string{noConfig: "true"},
			RunE: func(*cobra.Command, []string) error {
				if err := notOurs(path, engine.name); err != nil {
					return err
				}
				runtime, err := program.Find("kata-runtime")
				if err != nil {
					return err
				}
				change, err := engine.plan(path, runtime)
				if err != nil {
					return err
				}
				if err := a.apply(change, dryRun); err != nil || change.Empty() || engine.remains == "" {
					return err
				}
				_, err = fmt.Fprintf(a.out, "\nWhat remains to do:\n%s\n", engine.remains)
				return err
			},
		}
		cmd.Flags().StringVar(&path, engine.name+"-config", engine.path, engine.title+"'s configuration")
		cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would change, and change nothing")
		list = append(list, cmd)
	}
	return list
}
