package network

import (
	"errors"
	"fmt"

	"github.com/seed-efd44b36/kata/internal/resolver"
	"github.com/seed-efd44b36/kata/internal/steer"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// leaveAnswers lets the namespace have the answers to what a name server in there asks
// others, if it has one: the engine's asks by a socket in the namespace. It is tried
// once for each interface, and runs in the namespace.
func (a *Attachment) leaveAnswers() error {
	var joined []*nic
	for _, n := range a.nics {
		if n.index != 0 && !n.answers {
			joined = append(joined, n)
		}
	}
	if len(joined) == 0 {
		return nil
	}
	if present, err := resolver.Here(); err != nil || !present {
		return err
	}
	var errs []error
	for _, n := range joined {
		n.answers = true
		if err := n.leaveAnswers(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", n.name, err))
		}
	}
	return errors.Join(errs...)
}

func (n *nic) leaveAnswers() error {
	tap, err := netlink.LinkByName(n.tap)
	if err != nil {
		return fmt.Errorf("tap device: %w", err)
	}
	prog, err := steer.Answers(tap.Attrs().Index)
	if err != nil {
		return err
	}
	defer prog.Close()
	err = netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: n.index, Parent: netlink.MakeHandle(0xffff, 0), Priority: answersFirst, Protocol: unix.ETH_P_ALL,
		},
		Fd: int(prog.Fd()), Name: "answers", DirectAction: true,
	})
	if err != nil {
		return fmt.Errorf("add filter: %w", err)
	}
	return nil
}
