package command

import (
	"errors"
	"fmt"
	"testing"

	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/spf13/cobra"
)

func TestMainExitCode(t *testing.T) {
	for _, tt := range []struct {
		name string
		verb string
		err  error
		want int
	}{
		{"success", "run", nil, 0},
		{"of a process", "run", ExitError(7), 7},
		{"of a process, wrapped", "run", fmt.Errorf("ended: %w", ExitError(137)), 137},
		{"missing command", "run", fmt.Errorf("exec: %w", sandbox.ErrCommandNotFound), Missing},
		{"denied command", "run", fmt.Errorf("exec: %w", sandbox.ErrCommandDenied), Denied},
		{"failure of run", "run", errors.New("no kernel"), Failed},
		{"failure of another verb", "list", errors.New("no kernel"), 1},
		{"unknown verb", "nothing", nil, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := Program{
				Name: "test",
				Root: func(func()) *cobra.Command {
					root := &cobra.Command{Use: "test"}
					for _, v := range []string{"run", "list"} {
						root.AddCommand(&cobra.Command{Use: v, RunE: func(*cobra.Command, []string) error { return tt.err }})
					}
					return root
				},
				Code: func(verb string) int {
					if verb == "run" {
						return Failed
					}
					return 1
				},
			}
			if got := p.Main([]string{tt.verb}); got != tt.want {
				t.Errorf("exit code %d, want %d", got, tt.want)
			}
		})
	}
}
