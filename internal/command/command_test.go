package command

import (
	"errors"
	"fmt"
	"testing"

	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
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

// TestInterrupted sends the signal to the test itself, which Main has caught.
func TestInterrupted(t *testing.T) {
	for sig, want := range map[unix.Signal]int{unix.SIGINT: 130, unix.SIGTERM: 143} {
		p := Program{
			Name: "test",
			Root: func(func()) *cobra.Command {
				root := &cobra.Command{Use: "test"}
				root.AddCommand(&cobra.Command{Use: "run", RunE: func(cmd *cobra.Command, _ []string) error {
					if err := unix.Kill(unix.Getpid(), sig); err != nil {
						return err
					}
					<-cmd.Context().Done()
					return cmd.Context().Err()
				}})
				return root
			},
			Code: func(string) int { return Failed },
		}
		if got := p.Main([]string{"run"}); got != want {
			t.Errorf("%v: exit code %d, want %d", sig, got, want)
		}
	}
}

func TestInterruption(t *testing.T) {
	for _, tt := range []struct{ verb, text, want string }{
		{"run", "start sandbox x: context canceled\nend sandbox x: no answer", "interrupted while starting\nend sandbox x: no answer"},
		{"pull", "context canceled", "interrupted"},
	} {
		if got := interruption(tt.verb, tt.text); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.verb, got, tt.want)
		}
	}
}

func TestParseTail(t *testing.T) {
	for _, tt := range []struct {
		text string
		want int // -1: all
		ok   bool
	}{
		{"all", -1, true},
		{"0", 0, true},
		{"20", 20, true},
		{"-1", 0, false},
		{"x", 0, false},
		{"", 0, false},
	} {
		got, err := ParseTail(tt.text)
		switch {
		case (err == nil) != tt.ok:
			t.Errorf("%q: got error %v", tt.text, err)
		case tt.ok && (got == nil) != (tt.want < 0), got != nil && *got != tt.want:
			t.Errorf("%q: got %v, want %d", tt.text, got, tt.want)
		}
	}
}
