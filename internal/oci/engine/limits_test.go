package engine

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestLimits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args, stdin, want, err string
	}{
		{"", "", "cpu memory", ""},
		{"--memory 5 --pids-limit 7 --cpu-quota -1", "", "quota -1 memory 5 pids 7", ""},
		{"--resources -", `{"pids":{"limit":9}}`, "pids 9", ""},
		{"--resources -", `{`, "", "resources -"},
		{"--resources /no/such", "", "", "no such file"},
		{"--cpu-rt-period 3", "", "", "--cpu-rt-period: refused"},
		{"--l3-cache-schema x", "", "", "--l3-cache-schema: refused"},
	} {
		var got string
		cmd := (&Verbs{Root: t.TempDir()}).updateCommand()
		var l limits
		cmd.ResetFlags()
		l.add(cmd)
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, _ []string) error {
			r, err := l.resources(cmd.Flags(), strings.NewReader(tt.stdin))
			if err != nil {
				return err
			}
			var parts []string
			if r.CPU != nil && r.CPU.Quota != nil {
				parts = append(parts, fmt.Sprintf("quota %d", *r.CPU.Quota))
			} else if r.CPU != nil {
				parts = append(parts, "cpu")
			}
			if r.Memory != nil && r.Memory.Limit != nil {
				parts = append(parts, fmt.Sprintf("memory %d", *r.Memory.Limit))
			} else if r.Memory != nil {
				parts = append(parts, "memory")
			}
			if r.Pids != nil {
				parts = append(parts, fmt.Sprintf("pids %d", *r.Pids.Limit))
			}
			got = strings.Join(parts, " ")
			return nil
		}
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(strings.Fields(tt.args))
		err := cmd.ExecuteContext(t.Context())
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: %q, %v; want %q, %q", tt.args, got, err, tt.want, tt.err)
		}
	}
}
