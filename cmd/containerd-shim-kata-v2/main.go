// Command containerd-shim-kata-v2 runs containers and pods in virtual machines
// for containerd, as the runtime io.containerd.kata.v2. containerd starts it;
// it owns one sandbox and ends with it.
package main

import (
	"os"

	"github.com/seed-efd44b36/kata/internal/shim"
)

func main() {
	os.Exit(shim.Main(os.Args[1:]))
}
