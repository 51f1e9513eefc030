// Command kata-proxy owns one sandbox: its virtual machine and the link to the
// agent inside. It is started by kata and kata-runtime, outlives them, and ends
// with the sandbox.
package main

import (
	"os"

	"github.com/seed-efd44b36/kata/internal/proxy"
)

func main() {
	os.Exit(proxy.Main(os.Args[1:]))
}
