package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/vishvananda/netlink"
)

// TestAnswers: an engine's name server in the namespace gets what others answer it,
// and the guest has its neighbours all the same.
func TestAnswers(t *testing.T) {
	path, peer := pod(t)
	in(t, peer, func() error { return echo(t, "53", "54") })
	a, err := Attach(t.Context(), path, 1)
	must(t, err)
	defer a.Close()
	in(t, path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			return err
		}
		var conf net.ListenConfig
		server, err := conf.ListenPacket(t.Context(), "udp4", "127.0.0.11:0")
		if err == nil {
			t.Cleanup(func() { _ = server.Close() })
		}
		return err
	})
	f, err := a.Follow(t.Context(), func(context.Context, *agentv1.Network) error { return nil }, slog.New(slog.NewTextHandler(t.Output(), nil)))
	must(t, err)
	defer f.Close()
	if !a.nics[0].answers {
		t.Fatal("the name server was not found")
	}
	const patience = 30 * time.Second
	for _, protocol := range []string{"udp4", "tcp4"} {
		in(t, path, func() error {
			if err := ask(t, protocol, "53", patience); err != nil {
				return fmt.Errorf("%s: %w", protocol, err)
			}
			return nil
		})
	}
	in(t, path, func() error {
		if err := ask(t, "udp4", "54", 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("from a port that is not a name server's: %v", err)
		}
		return nil
	})
	guest := &station{t: t, tap: a.NICs()[0].Tap, mac: parseMAC(t, podMAC), ip: netip.MustParseAddr(podIP)}
	if got := net.HardwareAddr(guest.arp(netip.MustParseAddr(peerIP))).String(); got != peerMAC {
		t.Errorf("answer to ARP: %s, want %s", got, peerMAC)
	}
	guest.ping(netip.MustParseAddr(peerIP), parseMAC(t, peerMAC))
}

// echo answers on ports of the thread's namespace, until the test ends.
func echo(t *testing.T, ports ...string) error {
	t.Helper()
	for _, port := range ports {
		var conf net.ListenConfig
		u, err := conf.ListenPacket(t.Context(), "udp4", ":"+port)
		if err != nil {
			return err
		}
		l, err := conf.Listen(t.Context(), "tcp4", ":"+port)
		if err != nil {
			return errors.Join(err, u.Close())
		}
		ended := make(chan struct{}, 2)
		t.Cleanup(func() { _, _ = u.Close(), l.Close(); <-ended; <-ended })
		go func() {
			defer func() { ended <- struct{}{} }()
			b := make([]byte, 64)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(b[:n], from)
			}
		}()
		go func() {
			defer func() { ended <- struct{}{} }()
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.CopyN(c, c, int64(len(question)))
				_ = c.Close()
			}
		}()
	}
	return nil
}

const question = "name?"

// ask sends a question from the thread's namespace to the peer and reads it back.
func ask(t *testing.T, protocol, port string, patience time.Duration) error {
	t.Helper()
	d := net.Dialer{Timeout: patience}
	c, err := d.DialContext(t.Context(), protocol, net.JoinHostPort(peerIP, port))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, question); err != nil {
		return err
	}
	b := make([]byte, len(question))
	_, err = io.ReadFull(c, b)
	return err
}
