package cli

import (
	"fmt"

	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/version"
	"github.com/spf13/cobra"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:         "version",
		Short:       "Print the version",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{noConfig: "true"},
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprint(cmd.OutOrStdout(), ownVersion())
		},
	}
}

func ownVersion() string { return fmt.Sprintf("kata %s\n", version.String()) }

func (a *app) configCommand() *cobra.Command {
	return group("config", "Look at the configuration", "", &cobra.Command{
		Use:         "show",
		Short:       "Print the effective configuration and where each value came from",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{anyUser: "true"},
		RunE: func(*cobra.Command, []string) error {
			l, err := config.Load(a.configPath)
			if err != nil {
				return err
			}
			return l.Print(a.out)
		},
	})
}
