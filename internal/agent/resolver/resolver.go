// Package resolver answers in the guest for a name server that an engine has on
// 127.0.0.11 of the network namespace on the host: the questions go there by the link.
//
// Its sockets are bound to ports of the kernel's choice and given what is sent to port
// 53 of that address, so that a name server in a container can bind port 53 of all
// addresses, as it can without a machine.
package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/seed-efd44b36/kata/internal/agent/await"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/link/question"
)

const (
	// maxQuestions are on the link at a time; further ones wait in the kernel.
	maxQuestions = 32
	// maxConnections are open at a time; further ones wait in the kernel.
	maxConnections = 32
	// answerTimeout is what the host may take. It gives up earlier.
	answerTimeout = 20 * time.Second
	// idleTimeout is how long a connection may have nothing to say.
	idleTimeout = 20 * time.Second
	// pause is how long after a failed attempt to receive comes the next.
	pause = 100 * time.Millisecond
)

// resolver passes questions on and answers back.
type resolver struct {
	stream  link.Stream
	sockets *sockets
	log     *slog.Logger
	slots   chan struct{} // one for each question
	work    sync.WaitGroup

	writing sync.Mutex

	mu      sync.Mutex
	next    uint16                   // guarded by mu
	waiting map[uint16]chan<- []byte // guarded by mu
}

// Serve answers for the name server until the stream or the context ends, and closes
// the stream. The first byte back says that it does; a stream that ends without one,
// that it cannot.
func Serve(ctx context.Context, st link.Stream, log *slog.Logger) {
	defer st.Close()
	s, err := listen()
	if err != nil {
		log.Warn("names that the engine knows are not resolved", "err", err)
		return
	}
	serve(ctx, st, s, log)
}

// serve is the rest of Serve. It closes the sockets.
func serve(ctx context.Context, st link.Stream, s *sockets, log *slog.Logger) {
	ctx, end := context.WithCancel(ctx)
	r := &resolver{
		stream: st, sockets: s, log: log, slots: make(chan struct{}, maxQuestions), waiting: make(map[uint16]chan<- []byte),
	}
	defer r.work.Wait()
	defer end()
	defer s.close()
	defer context.AfterFunc(ctx, func() { _ = st.Close() })()
	if _, err := st.Write([]byte{0}); err != nil {
		return
	}
	r.work.Go(func() { r.receive(ctx) })
	r.work.Go(func() { r.accept(ctx) })
	for {
		a, err := question.Read(st)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				log.Debug("no more answers to questions for names", "err", err)
			}
			return
		}
		r.deliver(a)
	}
}

// deliver gives an answer to who waits for it, if anybody still does.
func (r *resolver) deliver(a question.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.waiting[a.Tag]; ok {
		delete(r.waiting, a.Tag)
		c <- a.Data
	}
}

// ask returns the answer to a question, nil if there is none. The caller has a slot.
func (r *resolver) ask(ctx context.Context, tcp bool, data []byte) []byte {
	answer := make(chan []byte, 1)
	r.mu.Lock()
	for r.waiting[r.next] != nil {
		r.next++
	}
	tag := r.next
	r.next++
	r.waiting[tag] = answer
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.waiting, tag)
	}()
	if err := r.send(question.Message{Tag: tag, TCP: tcp, Data: data}); err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	select {
	case b := <-answer:
		return b
	case <-ctx.Done():
		return nil
	}
}

func (r *resolver) send(m question.Message) error {
	r.writing.Lock()
	defer r.writing.Unlock()
	return question.Write(r.stream, m)
}

// take waits for a slot.
func take(ctx context.Context, slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// receive answers datagrams.
func (r *resolver) receive(ctx context.Context) {
	b := make([]byte, question.MaxData)
	for take(ctx, r.slots) {
		n, from, err := r.sockets.udp.ReadFromUDPAddrPort(b)
		if err != nil || n < question.MinData {
			<-r.slots
			if err != nil && await.Pause(ctx, pause) != nil {
				return
			}
			continue
		}
		data := append([]byte(nil), b[:n]...)
		r.work.Go(func() {
			defer func() { <-r.slots }()
			if a := r.ask(ctx, false, data); a != nil {
				if err := r.sockets.reply(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), a); err != nil {
					r.log.Debug("an answer to a question for a name is lost", "err", err)
				}
			}
		})
	}
}

// accept answers connections.
func (r *resolver) accept(ctx context.Context) {
	conns := make(chan struct{}, maxConnections)
	for take(ctx, conns) {
		conn, err := r.sockets.tcp.AcceptTCP()
		if err != nil {
			<-conns
			if await.Pause(ctx, pause) != nil {
				return
			}
			continue
		}
		r.work.Go(func() {
			defer func() { <-conns }()
			r.converse(ctx, conn)
		})
	}
}

// converse answers one question of a connection after the other. A length precedes
// each message.
func (r *resolver) converse(ctx context.Context, conn *net.TCPConn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	for {
		_ = conn.SetDeadline(time.Now().Add(idleTimeout))
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, b); err != nil || len(b) < question.MinData || !take(ctx, r.slots) {
			return
		}
		b = r.ask(ctx, true, b)
		<-r.slots
		_ = conn.SetDeadline(time.Now().Add(idleTimeout))
		if b == nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
			return
		}
	}
}
