// Command kata-shim stands on the host for one process in a virtual machine: its
// pid is what a container engine waits for and sends signals to. It is started by
// kata-runtime and ends as the process does.
package main

import (
	"os"

	"github.com/seed-efd44b36/kata/internal/standin"
)

func main() {
	os.Exit(standin.Main(os.Args[1:]))
}
