// Command kata-agent is the first process of the guest. Started as
// "container-init" it is what becomes a container's process, as modprobe what
// the kernel asks for a module, as rehearsal a container that does nothing.
package main

import (
	"os"

	"github.com/seed-efd44b36/kata/internal/agent"
	"github.com/seed-efd44b36/kata/internal/agent/jail"
	"github.com/seed-efd44b36/kata/internal/agent/module"
	"github.com/seed-efd44b36/kata/internal/agent/rehearsal"
)

func main() {
	switch os.Args[0] {
	case jail.Name:
		os.Exit(jail.Main())
	case module.Requester:
		os.Exit(module.Main(os.Args[1:]))
	case rehearsal.Program:
		os.Exit(0)
	}
	os.Exit(agent.Main())
}
