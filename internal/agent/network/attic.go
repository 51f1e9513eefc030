package network

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/seed-efd44b36/kata/internal/agent/rtnl"
	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

// ownNS is the calling thread's network namespace.
const ownNS = "/proc/thread-self/ns/net"

// within runs f on a thread in the network namespace.
func within(ns *os.File, f func() error) error {
	return thread.Run(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// attic is a network namespace for devices that have no interface, where nobody
// sees them. It is made for the first one.
type attic struct{ ns *os.File }

func (a *attic) open() error {
	if a.ns != nil {
		return nil
	}
	err := thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		var err error
		a.ns, err = os.Open(ownNS)
		return err
	})
	if err != nil {
		return fmt.Errorf("network namespace for spare devices: %w", err)
	}
	return nil
}

// atticName is the name of a device there.
func atticName(device net.HardwareAddr) string { return "d" + hex.EncodeToString(device) }

// put returns what takes a device away, and all that it has with it, from this
// thread's network namespace. was is how it is now.
func (a *attic) put(was rtnl.Link, device net.HardwareAddr) (move func() error, err error) {
	if err := a.open(); err != nil {
		return nil, err
	}
	// What need not be done is not: one that has never been used is as it should be.
	if was.Up {
		if err := rtnl.SetUp(was.Index, false); err != nil {
			return nil, fmt.Errorf("take down: %w", err)
		}
	}
	if !bytes.Equal(was.MAC, device) {
		if err := rtnl.SetMAC(was.Index, device); err != nil {
			return nil, fmt.Errorf("set hardware address %v: %w", device, err)
		}
	}
	moving, err := rtnl.Moving(was.Index, a.ns, atticName(device))
	if err != nil {
		return nil, fmt.Errorf("move device %v: %w", device, err)
	}
	return func() error {
		if err := moving(); err != nil {
			return fmt.Errorf("move device %v out of sight: %w", device, err)
		}
		return nil
	}, nil
}

// take brings a device back, if it is there.
func (a *attic) take(device net.HardwareAddr) error {
	if a.ns == nil {
		return nil
	}
	here, err := os.Open(ownNS)
	if err != nil {
		return err
	}
	defer here.Close()
	err = within(a.ns, func() error {
		links, err := rtnl.Links()
		if err != nil {
			return err
		}
		name := atticName(device)
		at := slices.IndexFunc(links, func(l rtnl.Link) bool { return l.Name == name })
		if at < 0 {
			return nil
		}
		return rtnl.Move(links[at].Index, here, name)
	})
	if err != nil {
		return fmt.Errorf("bring device %v back: %w", device, err)
	}
	return nil
}

// empty brings all devices back, with the names and MTUs that they had.
func (a *attic) empty(born []rtnl.Link) error {
	if a.ns == nil {
		return nil
	}
	here, err := os.Open(ownNS)
	if err != nil {
		return err
	}
	defer here.Close()
	return within(a.ns, func() error {
		links, err := rtnl.Links()
		if err != nil {
			return err
		}
		for _, l := range links {
			at := slices.IndexFunc(born, func(b rtnl.Link) bool { return atticName(b.Device()) == l.Name })
			if at < 0 {
				continue // the namespace's own
			}
			if b := born[at]; l.MTU != b.MTU {
				if err := rtnl.SetMTU(l.Index, b.MTU); err != nil {
					return fmt.Errorf("set MTU of %s: %w", b.Name, err)
				}
			}
			if err := rtnl.Move(l.Index, here, born[at].Name); err != nil {
				return fmt.Errorf("bring %s back: %w", born[at].Name, err)
			}
		}
		return nil
	})
}
