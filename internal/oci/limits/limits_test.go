package limits

import (
	"fmt"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/pflag"
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
		{"--cpu-rt-period 3", "", "", "--cpu-rt-period is refused: the guest's cgroups"},
		{"--cpu-rt-runtime 3", "", "", "--cpu-rt-runtime is refused: the guest's cgroups"},
		{"--l3-cache-schema x", "", "", "--l3-cache-schema is refused: Intel RDT"},
		{"--mem-bw-schema x", "", "", "--mem-bw-schema is refused: Intel RDT"},
	} {
		var got string
		var l Flags
		f := pflag.NewFlagSet("update", pflag.ContinueOnError)
		l.Add(f)
		err := f.Parse(strings.Fields(tt.args))
		if err == nil {
			var r *specs.LinuxResources
			if r, err = l.Resources(f, strings.NewReader(tt.stdin)); err == nil {
				got = told(r)
			}
		}
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: %q, %v; want %q, %q", tt.args, got, err, tt.want, tt.err)
		}
	}
}

// told is what of the limits the test looks at.
func told(r *specs.LinuxResources) string {
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
	return strings.Join(parts, " ")
}
