// Command kata-runtime is what container engines call, and the operator's
// tool: it checks the host and lists containers.
package main

import (
	"os"

	"github.com/seed-efd44b36/kata/internal/oci"
)

func main() {
	os.Exit(oci.Main(os.Args[1:]))
}
