package resolver

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/link/question"
	"github.com/seed-efd44b36/kata/internal/thread"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// patience is for what does not come at all.
const patience = 60 * time.Second

// namespace makes a network namespace whose loopback is up.
func namespace(t *testing.T) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make a network namespace")
	}
	var ns *os.File
	if err := thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err == nil {
			ns, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// silent is a name server that takes questions and has no answers.
func silent(t *testing.T, ns *os.File) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	if err := inNS(ns, func() (err error) {
		var conf net.ListenConfig
		c, err = conf.ListenPacket(t.Context(), "udp4", server().String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetReadDeadline(time.Now().Add(patience))
	return c
}

// streams are the ends of a stream.
func streams(t *testing.T) (ours, guests *net.UnixConn) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i := range ends {
		f := os.NewFile(uintptr(pair[i]), "stream")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = c.Close() })
	}
	_ = ends[1].SetDeadline(time.Now().Add(patience))
	return ends[0], ends[1]
}

// TestHostileGuest: a guest that asks without end has no more questions on their way
// than it may, and serving it ends though none was answered.
func TestHostileGuest(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	engine := silent(t, ns)
	ours, guest := streams(t)
	served := make(chan error, 1)
	ctx, end := context.WithCancel(t.Context())
	defer end()
	go func() { served <- Serve(ctx, ours, ns) }()
	const beyond = 8
	for i := range maxQuestions + beyond {
		if err := question.Write(guest, question.Message{Tag: uint16(i), Data: bytes.Repeat([]byte{1}, question.MinData)}); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, question.MaxData)
	for range maxQuestions {
		if _, _, err := engine.ReadFrom(b); err != nil {
			t.Fatal(err)
		}
	}
	_ = engine.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, _, err := engine.ReadFrom(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more question than there may be: %v", err)
	}
	end()
	if err := wait(t, served); err != nil {
		t.Error(err)
	}
}

func wait(t *testing.T, served <-chan error) error {
	t.Helper()
	select {
	case err := <-served:
		return err
	case <-time.After(patience):
		t.Fatal("serving does not end")
		return nil
	}
}

// TestMalformed: what is no question ends the serving.
func TestMalformed(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	ours, guest := streams(t)
	served := make(chan error, 1)
	go func() { served <- Serve(t.Context(), ours, ns) }()
	if _, err := guest.Write([]byte{0, 1, 2, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, served); !errors.Is(err, question.ErrMessage) || !strings.Contains(err.Error(), "protocol 2") {
		t.Errorf("%v", err)
	}
}

// TestNobodyAnswers: without a server the guest is told that there is no answer.
func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	ours, guest := streams(t)
	served := make(chan error, 1)
	go func() { served <- Serve(t.Context(), ours, ns) }()
	for _, tcp := range []bool{false, true} {
		want := question.Message{Tag: 7, TCP: tcp}
		if err := question.Write(guest, question.Message{Tag: 7, TCP: tcp, Data: make([]byte, question.MinData)}); err != nil {
			t.Fatal(err)
		}
		if got, err := question.Read(guest); err != nil || got.Tag != want.Tag || got.TCP != want.TCP || len(got.Data) > 0 {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
	_ = guest.Close()
	if err := wait(t, served); err != nil {
		t.Error(err)
	}
}
