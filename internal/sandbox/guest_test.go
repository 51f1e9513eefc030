package sandbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"golang.org/x/sys/unix"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// machine is a virtual machine of which only the agent port is real. Its guest
// is a function.
type machine struct {
	guest     func(*machine, net.Conn)
	host, far net.Conn // the two ends of the agent port
	done      chan struct{}
	work      sync.WaitGroup
	once      sync.Once
	exit      vmm.Exit // set before done is closed
}

var errKilled = errors.New("killed by signal 9")

func newMachine(guest func(*machine, net.Conn)) (*machine, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	m := &machine{guest: guest, done: make(chan struct{})}
	for i, end := range []*net.Conn{&m.host, &m.far} {
		f := os.NewFile(uintptr(fds[i]), "agent port")
		if *end, err = net.FileConn(f); err != nil {
			return nil, err
		}
		_ = f.Close()
	}
	return m, nil
}

func (m *machine) Start(context.Context) error {
	m.work.Go(func() { m.guest(m, m.far) })
	return nil
}

func (m *machine) Agent(context.Context) (net.Conn, error)  { return m.host, nil }
func (m *machine) AddDisk(context.Context, vmm.Disk) error  { return errors.ErrUnsupported }
func (m *machine) RemoveDisk(context.Context, string) error { return errors.ErrUnsupported }
func (m *machine) Console() []byte                          { return []byte("\x1b[31mguest console\a\r\nlast words\n") }
func (m *machine) Done() <-chan struct{}                    { return m.done }
func (m *machine) Kill(context.Context) vmm.Exit {
	m.end(nil)
	// Without a caller of Agent the host's end has no other owner.
	_ = m.host.Close()
	m.work.Wait()
	return m.exit
}

// PIDs has none after the end, as vmm/qemu.
func (m *machine) PIDs() []int {
	select {
	case <-m.done:
		return nil
	default:
		return []int{os.Getpid()}
	}
}

// end ends the machine; a reason means that nobody asked for it.
func (m *machine) end(reason error) {
	m.once.Do(func() {
		if reason != nil {
			reason = fmt.Errorf("%w: %w", reason, vmm.ErrGone)
		}
		m.exit = vmm.Exit{Err: reason, Stderr: []byte("qemu: \x1b]0;oh\adear\n"), Console: m.Console(), At: time.Now()}
		_ = m.far.Close()
		close(m.done)
	})
}

// ended tells whether the machine has ended.
func (m *machine) ended() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// guest is the far end of the link. Where it has no fault it does what the
// agent does, as far as the host can see.
type guest struct {
	machine *machine
	// faults has what to do instead of answering a call, by method.
	faults map[string]fault
	// stdio gets the streams that the host opens for processes; nil: they are
	// closed.
	stdio func(link.Stream, link.Header)

	mu      sync.Mutex
	waiting []*call                      // WaitProcess calls without an answer; guarded by mu
	ended   *agentv1.WaitProcessResponse // set when the processes have ended; guarded by mu
}

// fault is a way to answer a call wrong.
type fault func(*guest, *call)

// serve is the guest of a machine.
func (g *guest) serve(m *machine, conn net.Conn) {
	g.machine = m
	l, err := link.Serve(conn)
	if err != nil {
		return
	}
	defer l.Close()
	var work sync.WaitGroup
	defer work.Wait()
	for {
		s, h, err := l.Accept()
		if err != nil {
			return
		}
		switch {
		case h.Kind == link.KindRPC:
			work.Go(func() { g.serveCalls(s) })
		case h.Kind == link.KindStdio && g.stdio != nil:
			work.Go(func() { g.stdio(s, h) })
		default:
			_ = s.Close()
		}
	}
}

// call is one call of the host, on the level of frames, where one can lie best.
type call struct {
	conn   net.Conn
	stream uint32
	method string
}

// Types of ttRPC's messages.
const (
	typeRequest  = 1
	typeResponse = 2
	typeData     = 3
)

const messageHeader = 10 // bytes: length, stream, type, flags

func (g *guest) serveCalls(s link.Stream) {
	defer s.Close()
	for {
		var h [messageHeader]byte
		if _, err := io.ReadFull(s, h[:]); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(h[:]))
		if _, err := io.ReadFull(s, body); err != nil {
			return
		}
		var req ttrpc.Request
		if err := proto.Unmarshal(body, &req); err != nil || h[8] != typeRequest {
			return
		}
		c := &call{conn: s, stream: binary.BigEndian.Uint32(h[4:]), method: req.GetMethod()}
		if f := g.faults[c.method]; f != nil {
			f(g, c)
		} else {
			g.answer(c)
		}
	}
}

// answer is what a good agent answers.
func (g *guest) answer(c *call) {
	switch c.method {
	case "Details":
		c.reply(&agentv1.DetailsResponse{Version: "test", KernelRelease: "6.1\x1b[2J"})
	case "CreateContainer":
		c.reply(&agentv1.CreateContainerResponse{Pid: 42})
	case "StartProcess":
		c.reply(&agentv1.StartProcessResponse{Pid: 42})
	case "WaitProcess":
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.ended != nil {
			c.reply(g.ended)
			return
		}
		g.waiting = append(g.waiting, c)
	case "SignalProcess", "DeleteContainer":
		g.exit(137, time.Now())
		c.reply(&agentv1.SignalProcessResponse{})
	default:
		c.reply(&agentv1.SetTimeResponse{}) // they are all empty
	}
}

// exit ends all processes; only the first call counts.
func (g *guest) exit(code uint32, at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended == nil {
		g.ended = &agentv1.WaitProcessResponse{ExitCode: code, ExitedAt: at.UnixNano()}
	}
	for _, w := range g.waiting {
		w.reply(g.ended)
	}
	g.waiting = nil
}

func (c *call) reply(m proto.Message) {
	payload, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	c.send(c.stream, typeResponse, response(payload, nil))
}

func (c *call) fail(code codes.Code, text string) {
	c.send(c.stream, typeResponse, response(nil, &status.Status{Code: int32(code), Message: text}))
}

func response(payload []byte, st *status.Status) []byte {
	b, err := proto.Marshal(&ttrpc.Response{Payload: payload, Status: st})
	if err != nil {
		panic(err)
	}
	return b
}

func (c *call) send(stream uint32, kind byte, body []byte) {
	c.raw(append(frame(len(body), stream, kind), body...))
}

// raw writes bytes as they are. An error means that the host has gone.
func (c *call) raw(b []byte) { _, _ = c.conn.Write(b) }

// frame is the header of a message.
func frame(length int, stream uint32, kind byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(length))
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, kind, 0)
}
