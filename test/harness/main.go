package harness

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

// Main is the TestMain of a package of that name: run makes what its tests share, runs
// them, and looks at what they have left. Its error is told, and is a failure.
func Main(m *testing.M, name string, run func(*testing.M) (code int, err error)) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		code = 1
	}
	os.Exit(code)
}
