// Command kata-agent is the first process of the guest. Started as
// "container-init" it is what becomes a container's process.
package main

import (
	"os"

	"github.com/seed-efd44b36/kata/internal/agent"
	"github.com/seed-efd44b36/kata/internal/agent/jail"
)

func main() {
	if os.Args[0] == jail.Name {
		os.Exit(jail.Main())
	}
	os.Exit(agent.Main())
}
