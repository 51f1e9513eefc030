// Package guest is the host's end of the guest: the link, the agent's calls, and
// what its answers mean. Nothing that a guest says is trusted: texts are cut and
// made fit to be printed here.
package guest

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/containerd/ttrpc"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/vmm"
)

// vsockPort is where the agent listens when there is vsock.
const vsockPort = 1024

// seedBytes of entropy are given to each guest.
const seedBytes = 64

// maxKernel bounds the name of the guest's kernel.
const maxKernel = 128

// Guest is a connection to an agent. It is safe for concurrent use.
type Guest struct {
	agentv1.AgentService
	// Kernel is the release that the guest says it runs.
	Kernel string
	// RSS is the agent's memory in bytes, as it says.
	RSS uint64

	link   link.Opener
	client *ttrpc.Client
	names  names
}

// Connect makes the link to the machine's agent and waits for the first answer.
// cid is that of the machine's vsock, 0 if it has none. The caller closes it.
func Connect(ctx context.Context, m vmm.Machine, cid uint32) (_ *Guest, err error) {
	conn, err := m.Agent(ctx)
	if err != nil {
		return nil, fmt.Errorf("agent port: %w", err)
	}
	g := &Guest{}
	if cid != 0 {
		g.link, err = link.DialVsock(ctx, conn, cid, vsockPort)
	} else {
		g.link, err = link.Client(ctx, conn)
	}
	if err != nil {
		return nil, fmt.Errorf("link to the agent: %w", err)
	}
	rpc, err := g.link.Open(ctx, link.Header{Kind: link.KindRPC})
	if err != nil {
		_ = g.link.Close()
		return nil, fmt.Errorf("link to the agent: %w", err)
	}
	g.client = ttrpc.NewClient(rpc)
	g.AgentService = agentv1.NewAgentClient(g.client)
	d, err := g.Details(ctx, &agentv1.DetailsRequest{})
	if err != nil {
		g.Close()
		return nil, fmt.Errorf("agent's first answer: %w", Error(err, false))
	}
	tellBoot(ctx, d)
	g.Kernel, g.RSS = printable.Text(d.GetKernelRelease(), maxKernel), d.GetAgentRssBytes()
	return g, nil
}

// Setup makes the guest a sandbox, with the time, and with random numbers that no
// other guest has: a restored one knows those of its template.
func (g *Guest) Setup(ctx context.Context, r *agentv1.SetupSandboxRequest) error {
	r.Entropy = make([]byte, seedBytes)
	if _, err := rand.Read(r.Entropy); err != nil {
		return fmt.Errorf("entropy for the guest: %w", err)
	}
	r.TimeUnixNs = time.Now().UnixNano()
	if _, err := traced(ctx, "guest set-up", r, g.SetupSandbox); err != nil {
		return fmt.Errorf("guest set-up: %w", Error(err, false))
	}
	return nil
}

// Open opens a stream to the agent.
func (g *Guest) Open(ctx context.Context, h link.Header) (link.Stream, error) {
	return g.link.Open(ctx, h)
}

// Wait returns nil when the agent has hung up, or the context's error.
func (g *Guest) Wait(ctx context.Context) error { return g.client.UserOnCloseWait(ctx) }

// Leave hangs up and leaves the agent ready for the next host on the same port.
func (g *Guest) Leave(ctx context.Context) error {
	if err := link.Leave(ctx, g.link); err != nil {
		return err
	}
	_ = g.client.Close()
	return nil
}

// Close hangs up.
func (g *Guest) Close() {
	_ = g.client.Close()
	_ = g.link.Close()
	g.names.close()
}
