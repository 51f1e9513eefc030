// Command kata runs container images, each in a virtual machine of its own.
package main

import (
	"os"

	"github.com/seed-efd44b36/kata/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:]))
}
