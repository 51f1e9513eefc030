package sandboxtest

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/link"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// Guest is the far end of the link. Where it has no fault it does what the
// agent does, as far as the host can see.
type Guest struct {
	// Machine is set by Serve.
	Machine *Machine
	// Faults has what to do instead of answering a call, by method.
	Faults map[string]Fault
	// Stdio gets the streams that the host opens for processes; nil: they are
	// closed.
	Stdio func(link.Stream, link.Header)

	mu      sync.Mutex
	waiting []*Call                      // WaitProcess calls without an answer; guarded by mu
	ended   *agentv1.WaitProcessResponse // set when the processes have ended; guarded by mu
}

// Fault is a way to answer a call wrong.
type Fault func(*Guest, *Call)

// Serve is the guest of a machine, for NewMachine.
func (g *Guest) Serve(m *Machine) {
	g.Machine = m
	l, err := link.Serve(m.Port)
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
		case h.Kind == link.KindStdio && g.Stdio != nil:
			work.Go(func() { g.Stdio(s, h) })
		default:
			_ = s.Close()
		}
	}
}

// Call is one call of the host, on the level of frames, where one can lie best.
type Call struct {
	// Conn is the stream of kind rpc.
	Conn net.Conn
	// Stream is the call's number on it, Method its name.
	Stream uint32
	Method string
	// Payload is the encoded request.
	Payload []byte
}

// The types of ttRPC's messages.
const (
	TypeRequest  = 1
	TypeResponse = 2
	TypeData     = 3
)

const messageHeader = 10 // bytes: length, stream, type, flags

func (g *Guest) serveCalls(s link.Stream) {
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
		if err := proto.Unmarshal(body, &req); err != nil || h[8] != TypeRequest {
			return
		}
		c := &Call{Conn: s, Stream: binary.BigEndian.Uint32(h[4:]), Method: req.GetMethod(), Payload: req.GetPayload()}
		if f := g.Faults[c.Method]; f != nil {
			f(g, c)
		} else {
			g.answer(c)
		}
	}
}

// answer is what a good agent answers.
func (g *Guest) answer(c *Call) {
	switch c.Method {
	case "Details":
		c.Reply(&agentv1.DetailsResponse{Version: "test", KernelRelease: "6.1\x1b[2J"})
	case "CreateContainer":
		c.Reply(&agentv1.CreateContainerResponse{Pid: 42})
	case "StartProcess":
		c.Reply(&agentv1.StartProcessResponse{Pid: 42})
	case "WaitProcess":
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.ended != nil {
			c.Reply(g.ended)
			return
		}
		g.waiting = append(g.waiting, c)
	case "SignalProcess", "DeleteContainer":
		g.Exit(137, time.Now())
		c.Reply(&agentv1.SignalProcessResponse{})
	default:
		c.Reply(&agentv1.SetTimeResponse{}) // they are all empty
	}
}

// Exit ends all processes; only the first call counts.
func (g *Guest) Exit(code uint32, at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended == nil {
		g.ended = &agentv1.WaitProcessResponse{ExitCode: code, ExitedAt: at.UnixNano()}
	}
	for _, w := range g.waiting {
		w.Reply(g.ended)
	}
	g.waiting = nil
}

// Reply answers the call.
func (c *Call) Reply(m proto.Message) {
	payload, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	c.Send(c.Stream, TypeResponse, Response(payload, nil))
}

// Fail answers the call with an error.
func (c *Call) Fail(code codes.Code, text string) {
	c.Send(c.Stream, TypeResponse, Response(nil, &status.Status{Code: int32(code), Message: text}))
}

// Response is the body of an answer.
func Response(payload []byte, st *status.Status) []byte {
	b, err := proto.Marshal(&ttrpc.Response{Payload: payload, Status: st})
	if err != nil {
		panic(err)
	}
	return b
}

// Send sends a message of any type on any stream.
func (c *Call) Send(stream uint32, kind byte, body []byte) {
	c.Raw(append(Frame(len(body), stream, kind), body...))
}

// Raw writes bytes as they are. An error means that the host has gone.
func (c *Call) Raw(b []byte) { _, _ = c.Conn.Write(b) }

// Frame is the header of a message.
func Frame(length int, stream uint32, kind byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(length))
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(b, kind, 0)
}
