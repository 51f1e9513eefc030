package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/install"
	"github.com/spf13/cobra"
)

func (a *app) installCommand() *cobra.Command {
	c := install.Containerd{Program: "containerd"}
	dryRun := false
	cmd := &cobra.Command{
		Use:   "containerd",
		Short: "Let containerd run pods in virtual machines",
		Long: "Adds the runtime handler kata to containerd's configuration. What is there stays as it is;\n" +
			"a copy of the file is kept beside it until `kata uninstall containerd` has undone the change.",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{noConfig: "true"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := notOurs(c.Config, "containerd"); err != nil {
				return err
			}
			change, err := c.Install(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.apply(change, dryRun); err != nil {
				return err
			}
			a.remains(change, c.Untrusted)
			return nil
		},
	}
	containerdFlags(cmd, &c, &dryRun)
	cmd.Flags().BoolVar(&c.Untrusted, "untrusted-workloads", false, "run pods that are annotated as untrusted in virtual machines too (containerd 1.x); once given it stays until the uninstall")
	const about = "Put kata into the configuration of an engine"
	return group("install", about, about+".", append(a.engineCommands(about, install.Docker.Install, install.DropIn.Install), cmd)...)
}

func (a *app) uninstallCommand() *cobra.Command {
	c := install.Containerd{Program: "containerd"}
	dryRun := false
	cmd := &cobra.Command{
		Use:         "containerd",
		Short:       "Undo `kata install containerd`",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{noConfig: "true"},
		RunE: func(*cobra.Command, []string) error {
			change, err := c.Uninstall()
			if err != nil {
				return err
			}
			if err := a.apply(change, dryRun); err != nil || change.Empty() {
				return err
			}
			fmt.Fprintln(a.out, "\nWhat remains to do:\n  remove pods that use the handler, then: systemctl restart containerd")
			return nil
		},
	}
	containerdFlags(cmd, &c, &dryRun)
	const about = "Take kata out of the configuration of an engine"
	return group("uninstall", about, about+".", append(a.engineCommands(about, install.Docker.Uninstall, install.DropIn.Uninstall), cmd)...)
}

func containerdFlags(cmd *cobra.Command, c *install.Containerd, dryRun *bool) {
	cmd.Flags().StringVar(&c.Config, "containerd-config", install.ContainerdConfig, "containerd's configuration")
	// Only after this word: before it, it is the flag of the whole program.
	cmd.Flags().StringVar(&c.Config, "config", install.ContainerdConfig, "the same as --containerd-config")
	cmd.Flags().BoolVar(dryRun, "dry-run", false, "show what would change, and change nothing")
}

// notOurs refuses kata's own configuration, which need not exist.
func notOurs(path, engine string) error {
	for _, own := range []string{config.File, os.Getenv(config.EnvFile)} {
		if own != "" && filepath.Clean(path) == filepath.Clean(own) {
			return fmt.Errorf("%s is kata's own configuration; name that of the engine with --%s-config", path, engine)
		}
	}
	return nil
}

// apply makes a change, or only shows it, and tells which.
func (a *app) apply(change install.Change, dryRun bool) error {
	if change.Empty() {
		fmt.Fprintf(a.out, "%s: nothing to change\n", change.Path)
		return nil
	}
	verb := "changed"
	if dryRun {
		verb = "would be changed"
	} else if err := change.Apply(); errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w; run it as root", err)
	} else if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s %s:\n", change.Path, verb)
	if err := change.Describe(a.out); err != nil {
		return err
	}
	if original := change.Original(); original != "" {
		fmt.Fprintf(a.out, "as it was before kata came into it: %s\n", original)
	}
	return nil
}

// remains tells what an administrator has to do after the installation.
func (a *app) remains(change install.Change, untrusted bool) {
	fmt.Fprintln(a.out, "\nWhat remains to do:")
	if _, err := exec.LookPath("containerd-shim-kata-v2"); err != nil {
		fmt.Fprintln(a.out, "  containerd-shim-kata-v2 is not in PATH, where containerd looks for it: make install")
	}
	if change.CRIDisabled() {
		fmt.Fprintln(a.out, `  the CRI plugin is turned off: take "cri" out of disabled_plugins, for Kubernetes`)
	}
	if !change.Empty() {
		fmt.Fprintln(a.out, "  systemctl restart containerd (what runs goes on running)")
	}
	fmt.Fprintln(a.out, "  ctr run --runtime io.containerd.kata.v2 … needs no more than that")
	fmt.Fprintln(a.out, "  for Kubernetes: kubectl apply -f deploy/containerd/runtimeclass.yaml, and runtimeClassName: kata in pods")
	if untrusted {
		fmt.Fprintln(a.out, `  or the annotation io.kubernetes.cri.untrusted-workload: "true"`)
	}
}
