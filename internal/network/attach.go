package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxNICs is how many interfaces a virtual machine has.
const maxNICs = 1

// Attachment is the junction of a namespace with a virtual machine.
type Attachment struct {
	// Tap is the open tap device, with virtio-net headers, for the VMM; nil
	// when the namespace has no interface. The device is gone when the last
	// process has closed it.
	Tap *os.File
	// MAC and MTU are those that the guest's device must have.
	MAC string
	MTU int
	// Network is what the agent is to replay in the guest.
	Network *agentv1.Network

	ns    *os.File
	iface string // joined to the tap
	tap   string // name of the tap device
}

// Attach reads the namespace at path and joins its interface to a new tap
// device. More interfaces than a machine has are refused by name. The caller
// closes the attachment after the VMM has ended.
func Attach(ctx context.Context, path string) (*Attachment, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("attach network namespace %s: %w", path, err)
	}
	ns, err := OpenNS(path)
	if err != nil {
		return nil, err
	}
	a := &Attachment{ns: ns}
	if err := inNS(ns, a.attach); err != nil {
		return nil, fmt.Errorf("attach network namespace %s: %w", path, errors.Join(err, a.Close()))
	}
	return a, nil
}

// attach runs in the namespace.
func (a *Attachment) attach() error {
	links, err := findLinks()
	if err != nil {
		return err
	}
	if len(links) > maxNICs {
		return fmt.Errorf("it has the interfaces %s, and a virtual machine gets %d: %w", linkNames(links), maxNICs, ErrUnsupported)
	}
	if a.Network, err = scan(links); err != nil || len(links) == 0 {
		return err
	}
	link := links[0]
	attrs := link.Attrs()
	if len(attrs.HardwareAddr) != 6 {
		return fmt.Errorf("interface %s of type %s has no Ethernet address: %w", attrs.Name, link.Type(), ErrUnsupported)
	}
	a.MAC, a.MTU, a.iface = attrs.HardwareAddr.String(), attrs.MTU, attrs.Name
	if a.Tap, a.tap, err = openTap(); err != nil {
		return err
	}
	tap, err := netlink.LinkByName(a.tap)
	if err != nil {
		return fmt.Errorf("tap device: %w", err)
	}
	if err := setUp(tap, a.MTU); err != nil {
		return fmt.Errorf("tap device: %w", err)
	}
	for _, pair := range [][2]netlink.Link{{link, tap}, {tap, link}} {
		if err := redirect(pair[0], pair[1]); err != nil {
			return fmt.Errorf("redirect %s to %s: %w", pair[0].Attrs().Name, pair[1].Attrs().Name, err)
		}
	}
	return nil
}

func linkNames(links []netlink.Link) string {
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return strings.Join(names, ", ")
}

// openTap makes a tap device in the thread's namespace. It is not persistent:
// a crash of all that hold it removes it.
func openTap() (*os.File, string, error) {
	// Blocking, as the VMM will set what it needs on the open file itself.
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", fmt.Errorf("open /dev/net/tun: %w; load the module tun (modprobe tun)", err)
	}
	ifr, err := unix.NewIfreq(tapPrefix + "%d")
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return nil, "", fmt.Errorf("make tap device: %w", err)
	}
	return os.NewFile(uintptr(fd), ifr.Name()), ifr.Name(), nil
}

// addrGenNone keeps a kernel from giving an interface an IPv6 address by
// itself (IN6_ADDR_GEN_MODE_NONE).
const addrGenNone = 1

// setUp brings the tap up, mute: with an address of its own the namespace's
// stack would talk to the guest.
func setUp(tap netlink.Link, mtu int) error {
	if err := netlink.LinkSetMTU(tap, mtu); err != nil {
		return fmt.Errorf("set MTU %d: %w", mtu, err)
	}
	// A kernel without IPv6 has nothing to keep quiet.
	err := netlink.LinkSetIP6AddrGenMode(tap, addrGenNone)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("switch IPv6 addresses off: %w", err)
	}
	if err := netlink.LinkSetUp(tap); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// ingress is the queueing discipline that hangs filters on what arrives.
func ingress(l netlink.Link) *netlink.Ingress {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_INGRESS, Handle: netlink.MakeHandle(0xffff, 0),
	}}
}

// redirect makes all that arrives at from leave through to. A discipline that
// is there is left from a machine that had the namespace before, and goes.
func redirect(from, to netlink.Link) error {
	q := ingress(from)
	err := netlink.QdiscAdd(q)
	if errors.Is(err, unix.EEXIST) {
		if err := netlink.QdiscDel(q); err != nil {
			return fmt.Errorf("remove old ingress qdisc: %w", err)
		}
		err = netlink.QdiscAdd(q)
	}
	if err != nil {
		return fmt.Errorf("add ingress qdisc: %w", err)
	}
	// u32 without a selector matches everything. It is in more kernels than
	// matchall, which does the same.
	err = netlink.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: from.Attrs().Index, Parent: netlink.MakeHandle(0xffff, 0), Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs:  netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN},
			MirredAction: netlink.TCA_EGRESS_REDIR,
			Ifindex:      to.Attrs().Index,
		}},
	})
	if err != nil {
		return fmt.Errorf("add filter: %w", err)
	}
	return nil
}

// Close takes the junction apart and leaves the namespace as it was. A
// namespace whose interface has been removed meanwhile is no error.
func (a *Attachment) Close() error {
	if a.ns == nil {
		return nil
	}
	var errs []error
	if a.iface != "" {
		errs = append(errs, inNS(a.ns, a.detach))
	}
	if a.Tap != nil {
		errs = append(errs, a.Tap.Close())
	}
	errs = append(errs, a.ns.Close())
	a.ns = nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach network: %w", err)
	}
	return nil
}

// detach runs in the namespace.
func (a *Attachment) detach() error {
	var gone netlink.LinkNotFoundError
	link, err := netlink.LinkByName(a.iface)
	if err == nil {
		err = netlink.QdiscDel(ingress(link))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // none there
			err = nil
		}
	}
	if err != nil && !errors.As(err, &gone) {
		return fmt.Errorf("restore %s: %w", a.iface, err)
	}
	if a.tap == "" {
		return nil
	}
	// Deleted, though it would go with its last user: that may be a VMM which
	// does not end.
	tap, err := netlink.LinkByName(a.tap)
	if err == nil {
		err = netlink.LinkDel(tap)
	}
	if err != nil && !errors.As(err, &gone) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete tap device: %w", err)
	}
	return nil
}
