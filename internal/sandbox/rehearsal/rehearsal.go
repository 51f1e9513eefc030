// Package rehearsal lets a guest do, before it is needed, all that the start of a
// container takes: by the same calls and streams, with containers that do next to
// nothing. An emulator has then translated that code, and the guest's caches are
// warm. Afterwards the guest is what it was, and no sandbox yet.
//
// Whoever keeps machines ahead calls In, or Fill for a directory that the guest can
// see, and Run; both leave the link open.
package rehearsal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/sandbox/guest"
	"github.com/seed-efd44b36/kata/internal/sandbox/machine"
	"github.com/seed-efd44b36/kata/internal/share"
	"github.com/seed-efd44b36/kata/internal/spec"
)

// ID is that of the sandbox that is tried out, and of what is in it.
const ID = "rehearsal"

// Stage is where a guest rehearses.
type Stage struct {
	// Storage shows the guest the shared directory, as it will to a sandbox.
	Storage *agentv1.Storage
	// Root is the guest's path of a directory in there that Fill has filled.
	Root string
	// Devices are the hardware addresses of the machine's network devices, with
	// which the guest finds them; there may be none. Nothing is sent over them but
	// what a kernel sends when it takes an interface up.
	Devices []string
	// Rounds is how many sandboxes there are, one after the other, each with one
	// container: the first as Docker would ask for it, with a network, the second
	// plain and without, and so on. Less than two leave something out.
	Rounds int
}

// rounds is how many sandboxes In has: of each kind one.
const rounds = 2

// In is Run in a shared directory, which is afterwards as it was. A directory is made
// at scratch, for the caller to remove. devices are a Stage's.
func In(ctx context.Context, g *guest.Guest, d *share.Dir, scratch string, devices []string) error {
	err := os.Mkdir(scratch, 0o700)
	if err == nil {
		err = Fill(scratch)
	}
	if err == nil {
		err = d.AddRootfs(ctx, ID, scratch, nil, true)
	}
	if err != nil {
		return fmt.Errorf("rehearsal: %w", err)
	}
	err = Run(ctx, g, Stage{
		Storage: d.Storage(machine.ShareTag, spec.GuestShared), Root: path.Join(spec.GuestShared, ID, "rootfs"),
		Devices: devices, Rounds: rounds,
	})
	return errors.Join(err, d.Remove(ID))
}

// Run has the guest rehearse. After an error the guest is of no use.
func Run(ctx context.Context, g *guest.Guest, s Stage) error {
	for i := range s.Rounds {
		if err := s.round(ctx, g, i%2 == 1); err != nil {
			return fmt.Errorf("rehearsal in the guest: %w", err)
		}
	}
	return nil
}

// round is one sandbox.
func (s Stage) round(ctx context.Context, g *guest.Guest, plain bool) error {
	network := s.network(plain)
	if err := g.Setup(ctx, &agentv1.SetupSandboxRequest{
		Id: ID, Hostname: ID, Rehearsal: true, Storages: []*agentv1.Storage{s.Storage}, Network: network,
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"},
	}); err != nil {
		return err
	}
	container, err := json.Marshal(s.container(plain))
	if err != nil {
		return err
	}
	stdio := &agentv1.Stdio{Stdin: true, Stdout: true, Stderr: true}
	if _, err := g.CreateContainer(ctx, &agentv1.CreateContainerRequest{Id: ID, Spec: container, Stdio: stdio}); err != nil {
		return guest.Error(err, true)
	}
	if _, err := g.UpdateNetwork(ctx, &agentv1.UpdateNetworkRequest{Network: network}); err != nil {
		return guest.Error(err, false)
	}
	if err := s.play(ctx, g, stdio); err != nil {
		return err
	}
	if _, err := g.DeleteContainer(ctx, &agentv1.DeleteContainerRequest{Container: ID}); err != nil {
		return guest.Error(err, false)
	}
	if _, err := g.Settle(ctx, &agentv1.SettleRequest{}); err != nil {
		return guest.Error(err, false)
	}
	return nil
}

// play runs the container's process and another one in it.
func (s Stage) play(ctx context.Context, g *guest.Guest, stdio *agentv1.Stdio) error {
	init := process{guest: g}
	if err := init.start(ctx, stdio); err != nil {
		return err
	}
	defer init.close()
	b, err := json.Marshal(command())
	if err != nil {
		return err
	}
	further := process{guest: g, exec: ID}
	stdio = &agentv1.Stdio{Stdout: true, Stderr: true}
	if _, err := g.CreateExec(ctx, &agentv1.CreateExecRequest{Container: ID, Exec: ID, Process: b, Stdio: stdio}); err != nil {
		return guest.Error(err, true)
	}
	if err := further.start(ctx, stdio); err != nil {
		return err
	}
	defer further.close()
	if err := further.wait(); err != nil {
		return err
	}
	if _, err := g.DeleteProcess(ctx, &agentv1.DeleteProcessRequest{Container: ID, Exec: ID}); err != nil {
		return guest.Error(err, false)
	}
	return init.wait()
}

// process is a process in the guest and its streams.
type process struct {
	guest   *guest.Guest
	exec    string
	streams []link.Stream // in the order of their numbers
	in      link.Stream   // one of them; nil if it has none
	ended   chan error    // nil before someone waits for its end
	forget  func()        // ends that wait
}

// start starts the process as sandboxes do: someone waits for its end first.
func (p *process) start(ctx context.Context, stdio *agentv1.Stdio) error {
	for fd, wanted := range []bool{stdio.GetStdin(), stdio.GetStdout(), stdio.GetStderr()} {
		if !wanted {
			continue
		}
		st, err := p.guest.Open(ctx, link.Header{Kind: link.KindStdio, Container: ID, Exec: p.exec, FD: uint8(fd)})
		if err != nil {
			p.close()
			return err
		}
		if deadline, ok := ctx.Deadline(); ok {
			_ = st.SetDeadline(deadline)
		}
		if fd == 0 {
			p.in = st
		}
		p.streams = append(p.streams, st)
	}
	ctx, p.forget = context.WithCancel(ctx)
	p.ended = make(chan error, 1)
	go func() { // close waits for it
		defer close(p.ended)
		resp, err := p.guest.WaitProcess(ctx, &agentv1.WaitProcessRequest{Container: ID, Exec: p.exec})
		if err = guest.Error(err, false); err == nil && resp.GetExitCode() != 0 {
			err = fmt.Errorf("exit code %d", resp.GetExitCode())
		}
		p.ended <- err
	}()
	if _, err := p.guest.StartProcess(ctx, &agentv1.StartProcessRequest{Container: ID, Exec: p.exec}); err != nil {
		p.close()
		return guest.Error(err, true)
	}
	return nil
}

// wait ends the input, reads the output and waits for the end.
func (p *process) wait() error {
	outputs := p.streams
	if p.in != nil {
		outputs = outputs[1:]
		if err := p.in.CloseWrite(); err != nil {
			return fmt.Errorf("end the input: %w", err)
		}
	}
	var said bytes.Buffer
	for _, st := range outputs {
		if _, err := io.Copy(&said, io.LimitReader(st, 1<<10)); err != nil {
			return fmt.Errorf("read the output: %w", err)
		}
	}
	if err := <-p.ended; err != nil {
		return err
	}
	if said.String() != greeting {
		return errors.New("the program did not say what it should")
	}
	return nil
}

func (p *process) close() {
	if p.ended != nil {
		p.forget()
		for range p.ended { // until nobody waits
		}
	}
	for _, st := range p.streams {
		_ = st.Close()
	}
}

// command is how the program is run.
func command() *specs.Process {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_AUDIT_WRITE"}
	return &specs.Process{
		Args: []string{path.Base(program)}, Cwd: "/", Env: []string{"PATH=" + path.Dir(program)}, NoNewPrivileges: true,
		User:         specs.User{AdditionalGids: []uint32{10}},
		Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
	}
}
