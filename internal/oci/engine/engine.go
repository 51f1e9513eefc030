// Package engine has the verbs of kata-runtime that container engines call, with
// the flags, the exit codes and the texts of runc, as far as engines look at them. A
// verb comes, does its work and goes: what is to last is kept by package record, a
// kata-shim for each process (package standin), and a kata-proxy for each sandbox.
//
// Engines are trusted with root; what they pass on in specs from their users is
// checked by package spec, and what comes from guests by the sandbox.
package engine

import (
	"io"

	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/spf13/cobra"
)

// NoConfig annotates commands that do without a configuration, or read it
// themselves.
const NoConfig = "noconfig"

// Verbs are the verbs, and what all of them need.
type Verbs struct {
	// Conf and ConfigPath, Root and RootGiven are set before a verb runs. Root is
	// the directory of records; RootGiven: the caller has named it.
	Conf             config.Config
	ConfigPath, Root string
	RootGiven        bool
	Out, ErrOut      io.Writer
	// Warn tells of what is no failure.
	Warn func(error)
	// Work finds the container of any sandbox that a person means.
	Work func(name string) (sandbox string, c report.Container, err error)
}

// Commands are the commands. release gives signals back to one that handles them
// itself.
func (a *Verbs) Commands(release func()) []*cobra.Command {
	return []*cobra.Command{
		a.createCommand(), a.startCommand(), a.stateCommand(), a.killCommand(), a.deleteCommand(), a.runCommand(release), a.execCommand(release),
		a.psCommand(), a.pauseCommand(), a.resumeCommand(), a.updateCommand(), a.eventsCommand(), a.listCommand(), a.specCommand(), a.featuresCommand(),
	}
}
