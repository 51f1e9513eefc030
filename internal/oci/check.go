package oci

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seed-efd44b36/kata/internal/check"
	"github.com/seed-efd44b36/kata/internal/command"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/kvm"
	"github.com/seed-efd44b36/kata/internal/oci/engine"
	"github.com/seed-efd44b36/kata/internal/program"
	"github.com/seed-efd44b36/kata/internal/vmm/qemu"
	"github.com/spf13/cobra"
)

func (a *app) checkCommand() *cobra.Command {
	var verbose, asJSON bool
	cmd := &cobra.Command{
		Use:     "check",
		Aliases: []string{"kata-check"},
		Short:   "Tell whether this host can run containers in virtual machines, and what is missing",
		Args:    cobra.NoArgs,
		// A configuration that is wrong is one of the things to tell.
		Annotations: map[string]string{engine.NoConfig: "true"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := config.Load(a.configPath)
			if err == nil {
				a.conf = l.Config
			} else {
				a.conf = config.Default()
			}
			opts := a.checkOptions()
			opts.Problems = problems(err)
			rep := check.Run(cmd.Context(), opts)
			if asJSON {
				err = rep.WriteJSON(a.out)
			} else {
				err = rep.WriteText(a.out, verbose)
			}
			if err == nil && !rep.CanCreate {
				err = command.ExitError(1)
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "print what is in order, too")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) envCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "env",
		Aliases: []string{"kata-env"},
		Short:   "Print the environment, for bug reports and scripts",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("own path: %w", err)
			}
			l, err := config.Load(a.configPath)
			if err != nil {
				return err
			}
			b := check.Binary{Path: self, OCI: specs.Version}
			if len(l.Files) > 0 {
				b.ConfigFile = l.Files[0]
			}
			env := check.Environment(cmd.Context(), a.checkOptions(), b)
			if asJSON {
				return env.WriteJSON(a.out)
			}
			return env.WriteTOML(a.out)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// problems are the errors that are joined in one.
func problems(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// checkOptions joins the checks with the packages that know the answers.
func (a *app) checkOptions() check.Options {
	return check.Options{
		Config: a.conf,
		KVM: func(ctx context.Context) (bool, string) {
			v := kvm.Probe(ctx, filepath.Join(a.conf.Runtime.CacheDir, kvm.CacheFile))
			return v.Usable, v.Reason
		},
		QEMU: func(ctx context.Context) (path, version string, err error) {
			return qemu.Find(ctx, a.conf.Hypervisor.Path)
		},
		Kernel: func(context.Context) (check.Kernel, error) {
			agent, err := program.Find("kata-agent")
			if err != nil {
				return check.Kernel{}, err
			}
			b := guestimage.Builder{
				CacheDir: a.conf.Runtime.CacheDir, Agent: agent,
				Kernel: a.conf.Hypervisor.Kernel, Modules: a.conf.Hypervisor.KernelModules,
			}
			k, err := b.Find()
			if err != nil {
				return check.Kernel{}, err
			}
			return check.Kernel{Path: k.Path, Version: k.Version, Source: k.Source, Initrd: k.Initrd}, nil
		},
	}
}
