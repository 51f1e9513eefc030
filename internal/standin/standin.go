// Package standin is kata-shim: a process of the host that stands for one process
// in a virtual machine. Container engines know processes by their pids: they wait
// for a pid, send signals to it, look for namespaces at it. kata-shim gives them
// one. It carries the process's input, outputs, terminal and signals, ends with
// its exit code, and the process ends with it.
//
// Spawn, Join and Leave are for kata-runtime, which starts it; Main is the program.
// In between the two are joined by a socket: should kata-runtime end before it has
// said Leave, kata-shim does too. It trusts its caller and the sandbox's owner, and
// what comes from the guest is only passed on.
package standin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/sandbox/guest"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"github.com/seed-efd44b36/kata/internal/version"
)

// controlFD is the descriptor of the socket to who has started us.
const controlFD = 3

// What is said on it, besides a Process.
const (
	joined = "joined"
	left   = "left\n"
)

// maxAnswer bounds the error that Join gets, in bytes.
const maxAnswer = 4000

// Process says which process a kata-shim stands for.
type Process struct {
	// StateDir is that of the configuration.
	StateDir  string `json:"state_dir"`
	Sandbox   string `json:"sandbox"`
	Container string `json:"container"`
	// Exec is empty for the first process of the container.
	Exec string `json:"exec,omitempty"`
	TTY  bool   `json:"tty,omitempty"`
	// Notice is of the first process only.
	Notice Notice `json:"notice,omitzero"`
}

// Main is the program kata-shim. It returns the exit code of the process.
func Main(args []string) int {
	fs := flag.NewFlagSet("kata-shim", flag.ContinueOnError)
	fs.String("container", "", "the container, for people who look at processes")
	fs.String("exec", "", "the exec")
	tell := fs.Bool("version", false, "print the version")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if *tell {
		fmt.Fprintln(os.Stdout, "kata-shim", version.String())
		return 0
	}
	control := os.NewFile(controlFD, "control")
	if _, err := control.Stat(); err != nil {
		fmt.Fprintln(os.Stderr, "kata-shim is started by kata-runtime; it is of no use by hand")
		return 2
	}
	if err := guest.SilenceRPC(); err != nil {
		return report.LostCode
	}
	received, stop := catch()
	defer stop()
	said := bufio.NewReader(control)
	line, err := said.ReadBytes('\n')
	if err != nil {
		return report.LostCode // nobody is interested any more
	}
	var p Process
	if err := json.Unmarshal(line, &p); err != nil {
		return refuse(control, fmt.Errorf("join kata-shim: %w", err))
	}
	ctx := context.Background()
	j, err := join(ctx, p)
	if err != nil {
		return refuse(control, err)
	}
	defer j.close()
	if j.notifier, err = p.Notice.open(); err != nil {
		return refuse(control, err)
	}
	if err := hide(p.StateDir); err != nil {
		return refuse(control, err)
	}
	j.resize(ctx) // before the process can look
	if _, err := control.WriteString(joined + "\n"); err != nil {
		return report.LostCode
	}
	go func() { // ends with us
		if word, _ := said.ReadString('\n'); word != left {
			j.ended <- ending{code: report.LostCode, err: errGone}
		}
		_ = control.Close()
	}()
	return j.run(ctx, received)
}

// refuse tells why there is nothing to stand for.
func refuse(control *os.File, err error) int {
	text := strings.ReplaceAll(printable.Text(err.Error(), maxAnswer), "\n", " ")
	_, _ = control.WriteString(text + "\n")
	return report.LostCode
}

// join connects to the process.
func join(ctx context.Context, p Process) (_ *joint, err error) {
	const enders = 2 // the process, and who has started us
	j := &joint{Process: p, ended: make(chan ending, enders)}
	if j.client, err = proxy.Dial(ctx, p.StateDir, p.Sandbox); err != nil {
		return nil, err
	}
	// First of all: from here on the process does not outlive us.
	go j.wait(ctx) // ends with us
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	for fd := range j.streams {
		if p.TTY && fd == 2 {
			break
		}
		if j.streams[fd], err = j.client.OpenStdio(ctx, p.Container, p.Exec, uint8(fd)); err != nil {
			j.close()
			return nil, err
		}
	}
	return j, nil
}

// errGone tells that the sandbox's owner, or who has started us, is there no more.
var errGone = errors.New("nobody is left to tell")

// patience is how long the last output of a process that has ended may stand still
// before it is given up.
const patience = 5 * time.Second
