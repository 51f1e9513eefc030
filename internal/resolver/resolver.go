// Package resolver asks the name server of an engine on behalf of a guest. Docker has
// one for each container with a network of the user's, on 127.0.0.11 in the
// container's network namespace, which is the guest's own loopback in the guest.
//
// The guest is hostile, and so may what it asks be. It gets to port 53 of that one
// address in its own namespace and to nothing else, with a bounded number of questions
// at a time, each with a deadline. Messages are passed on as they are.
package resolver

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/link/question"
	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

const (
	// maxQuestions are asked at a time, each at the cost of a thread for a moment,
	// a socket, and two messages; further ones wait in the guest.
	maxQuestions = 32
	// answerTimeout is what an answer may take. Docker's server gives up earlier.
	answerTimeout = 15 * time.Second
	// maxSockets bounds the kernel's list of sockets that is read, in bytes.
	maxSockets = 1 << 20
)

// server is where the name server is.
func server() netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 11}), 53) }

// Present reports whether the namespace has such a name server: one that is bound to
// the address, at a port that the engine's firewall rules lead to.
func Present(ns *os.File) (present bool, err error) {
	err = inNS(ns, func() error {
		present, err = Here()
		return err
	})
	return present, err
}

// Here reports the same of the calling thread's namespace.
func Here() (present bool, err error) {
	f, err := os.Open("/proc/thread-self/net/udp")
	if err != nil {
		return false, fmt.Errorf("look for a name server: %w", err)
	}
	defer f.Close()
	addr := server().Addr().As4()
	// The kernel prints the address as this machine reads its bytes.
	want := fmt.Sprintf("%08X:", binary.NativeEndian.Uint32(addr[:]))
	s := bufio.NewScanner(io.LimitReader(f, maxSockets))
	for s.Scan() {
		if fields := strings.Fields(s.Text()); len(fields) > 1 && strings.HasPrefix(fields[1], want) {
			return true, nil
		}
	}
	if err := s.Err(); err != nil {
		return false, fmt.Errorf("look for a name server: %w", err)
	}
	return false, nil
}

// Serve answers the questions that come by the stream, until the context ends, or the
// stream and what is asked, and closes it. An error says that the guest does not speak the protocol.
func Serve(ctx context.Context, st link.Stream, ns *os.File) error {
	defer context.AfterFunc(ctx, func() { _ = st.Close() })()
	var asking sync.WaitGroup
	defer asking.Wait()
	defer st.Close()
	ctx, end := context.WithCancel(ctx)
	defer end()
	slots := make(chan struct{}, maxQuestions)
	var writing sync.Mutex
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		q, err := question.Read(st)
		if errors.Is(err, question.ErrMessage) {
			return fmt.Errorf("names for the guest: %w", err)
		}
		if err != nil {
			return nil
		}
		asking.Go(func() {
			defer func() { <-slots }()
			a := question.Message{Tag: q.Tag, TCP: q.TCP}
			if len(q.Data) > 0 {
				a.Data, _ = ask(ctx, ns, q) // none: the guest's clients ask again
			}
			writing.Lock()
			defer writing.Unlock()
			_ = question.Write(st, a) // an error shows when the next one is read
		})
	}
}

// ask asks one question.
func ask(ctx context.Context, ns *os.File, q question.Message) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	network := "udp4"
	if q.TCP {
		network = "tcp4"
	}
	var conn net.Conn
	err := inNS(ns, func() (err error) {
		var d net.Dialer
		d.SetMultipathTCP(false)
		conn, err = d.DialContext(ctx, network, server().String())
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if q.TCP {
		return exchange(conn, q.Data)
	}
	if _, err := conn.Write(q.Data); err != nil {
		return nil, err
	}
	b := make([]byte, question.MaxData)
	n, err := conn.Read(b)
	if err != nil {
		return nil, err
	}
	return fit(b[:n])
}

// exchange asks by a connection, where a length precedes each message.
func exchange(conn net.Conn, q []byte) ([]byte, error) {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, b); err != nil {
		return nil, err
	}
	return fit(b)
}

// fit returns b if it can be an answer.
func fit(b []byte) ([]byte, error) {
	if len(b) < question.MinData {
		return nil, fmt.Errorf("an answer of %d bytes", len(b))
	}
	return b, nil
}

func inNS(ns *os.File, f func() error) error {
	return thread.Run(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		return f()
	})
}
