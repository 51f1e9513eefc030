package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/thread"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ownGroups keeps our groups of interfaces apart from those that people number.
const ownGroups = 1 << 30

// maxNICs is how many network devices a machine can have.
const maxNICs = 256

// Attachment is the junction of a namespace with a virtual machine. It is used by
// one goroutine at a time; that of Follow is one, until its end.
type Attachment struct {
	ns   *os.File
	nics []*nic
	// group is that of the interfaces that are our taps, and of no others in the
	// namespace: the index of the first.
	group int
	own   bool             // the namespace goes, and the taps with it
	given *Devices         // the machine's devices, if it runs already
	told  *agentv1.Network // what the guest was told last
}

// nic is a network device of the machine, and what it is joined to.
type nic struct {
	file *os.File         // of the tap
	tap  string           // its name
	mac  net.HardwareAddr // of the guest's device, not of its interface

	// The interface that is joined to it; 0 and empty: none.
	index int
	name  string
	// answers: the interface's namespace has been given those of name servers, or
	// cannot be.
	answers bool
}

// The order of filters.
const (
	answersFirst = 1
	redirectLast = 2
)

// NIC is what the VMM is to make a network device of.
type NIC struct {
	// Tap is the open tap device, with virtio-net headers. It is the
	// attachment's, and gone when the last process has closed it.
	Tap *os.File
	// MAC is the address that the guest's device must have: DeviceMAC.
	MAC string
}

// Attach makes a device for each interface of the namespace at path, and at least
// as many as asked for: those that are left over are for interfaces that come
// later. The caller closes the attachment after the VMM has ended.
func Attach(ctx context.Context, path string, least int) (*Attachment, error) {
	return (&Attachment{}).to(ctx, path, least)
}

// AttachOwn is Attach for a namespace that is taken down after the attachment is
// closed: its taps are left in it. To remove one makes the kernel wait for 15 ms and
// more; with the namespace it does so when nobody waits.
func AttachOwn(ctx context.Context, path string, least int) (*Attachment, error) {
	return (&Attachment{own: true}).to(ctx, path, least)
}

// to attaches the namespace at path. Afterwards an attachment that there was an error
// with is of no use.
func (a *Attachment) to(ctx context.Context, path string, least int) (*Attachment, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("attach network namespace %s: %w", path, err)
	}
	ns, err := OpenNS(path)
	if err != nil {
		return nil, err
	}
	a.ns = ns
	if a.given != nil {
		err = a.given.moveTo(ns, a.own)
	}
	if err != nil {
		return nil, fmt.Errorf("attach network namespace %s: %w", path, errors.Join(err, a.Close()))
	}
	err = inNS(ns, func() (err error) {
		if err := a.attach(least); err != nil {
			return err
		}
		a.told, err = a.refresh()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach network namespace %s: %w", path, errors.Join(err, a.Close()))
	}
	return a, nil
}

// Idle makes devices that are joined to nothing and never will be, in a namespace
// that goes with them.
func Idle(n int) (*Attachment, error) {
	a := &Attachment{own: true}
	err := thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		return a.spare(n)
	})
	if err != nil {
		return nil, fmt.Errorf("make network devices: %w", errors.Join(err, a.Close()))
	}
	a.idle()
	return a, nil
}

// idle makes the guest be told of devices only.
func (a *Attachment) idle() {
	a.told = &agentv1.Network{}
	for _, n := range a.nics {
		a.told.Idle = append(a.told.Idle, n.mac.String())
	}
}

// attach runs in the namespace.
func (a *Attachment) attach(least int) error {
	links, err := findLinks()
	if err != nil {
		return err
	}
	for _, l := range links {
		if err := checkLink(l); err != nil {
			return err
		}
		n, err := a.addNIC()
		if err != nil {
			return err
		}
		if err := n.join(l); err != nil {
			return err
		}
	}
	return a.spare(least)
}

// spare adds devices for interfaces to come until there are enough.
func (a *Attachment) spare(least int) error {
	for len(a.nics) < least {
		if _, err := a.addNIC(); err != nil {
			return err
		}
	}
	return nil
}

func checkLink(l netlink.Link) error {
	if len(l.Attrs().HardwareAddr) != 6 {
		return fmt.Errorf("interface %s of type %s has no Ethernet address: %w", l.Attrs().Name, l.Type(), ErrUnsupported)
	}
	return nil
}

// DeviceMAC is the hardware address that a machine gives its network device with
// the number i, from 0, by which the guest finds it. It is the same in all machines,
// as that of a restored one cannot be another than when it was saved. What the
// interface has, the guest sets.
func DeviceMAC(i int) net.HardwareAddr {
	// Of one device, administered locally.
	return net.HardwareAddr{0x02, 'k', 'a', 't', 'a', byte(i)}
}

// addNIC makes a device that is not joined to anything.
func (a *Attachment) addNIC() (*nic, error) {
	if len(a.nics) == maxNICs {
		return nil, fmt.Errorf("more than %d interfaces: %w", maxNICs, ErrUnsupported)
	}
	var f *os.File
	var name string
	var err error
	if a.given != nil {
		f, name, err = a.given.take(len(a.nics))
	} else {
		f, name, err = openTap(a.own)
	}
	if err != nil {
		return nil, err
	}
	n := &nic{file: f, tap: name, mac: DeviceMAC(len(a.nics))}
	a.nics = append(a.nics, n)
	tap, err := netlink.LinkByName(name)
	if err == nil {
		if a.group == 0 {
			a.group = tap.Attrs().Index | ownGroups
		}
		err = netlink.LinkSetGroup(tap, a.group)
	}
	if err != nil {
		return nil, fmt.Errorf("tap device: %w", err)
	}
	return n, nil
}

// join joins an interface to the device.
func (n *nic) join(l netlink.Link) error {
	tap, err := netlink.LinkByName(n.tap)
	if err != nil {
		return fmt.Errorf("tap device: %w", err)
	}
	// Before anything is done that leave would undo, which would be the other's.
	if is, err := taken(l, tap); err != nil {
		return fmt.Errorf("interface %s: %w", l.Attrs().Name, err)
	} else if is {
		return fmt.Errorf("interface %s is another virtual machine's, with which a container cannot share its network; run both in one pod, or by kata-runtime: %w", l.Attrs().Name, ErrUnsupported)
	}
	if err := setUp(tap, l.Attrs().MTU); err != nil {
		return fmt.Errorf("tap device: %w", err)
	}
	n.index, n.name = l.Attrs().Index, l.Attrs().Name
	for _, pair := range [][2]netlink.Link{{l, tap}, {tap, l}} {
		if err := redirect(pair[0], pair[1]); err != nil {
			return fmt.Errorf("redirect %s to %s: %w", pair[0].Attrs().Name, pair[1].Attrs().Name, err)
		}
	}
	return nil
}

// Namespace is the open namespace, which is the attachment's to close; nil for
// devices of Idle.
func (a *Attachment) Namespace() *os.File { return a.ns }

// NICs are the devices that the machine must have, in the order of the
// namespace's interfaces, the spare ones last.
func (a *Attachment) NICs() []NIC {
	var out []NIC
	for _, n := range a.nics {
		out = append(out, NIC{Tap: n.file, MAC: n.mac.String()})
	}
	return out
}

// Network is what the agent is to replay in the guest first.
func (a *Attachment) Network() *agentv1.Network { return a.told }

// refresh reads the namespace, joins interfaces that are new to free devices,
// frees those whose interface has gone, and returns what the agent is to replay.
// An interface that no device is left for is an error that wraps ErrUnsupported
// and names it, beside the network of the others. It runs in the namespace.
func (a *Attachment) refresh() (*agentv1.Network, error) {
	links, err := findLinks()
	if err != nil {
		return nil, err
	}
	there := map[int]netlink.Link{}
	for _, l := range links {
		there[l.Attrs().Index] = l
	}
	for _, n := range a.nics {
		if l := there[n.index]; n.index != 0 && l == nil {
			if err := n.leave(); err != nil {
				return nil, err
			}
		} else if l != nil {
			n.name = l.Attrs().Name
			if err := n.follow(l.Attrs().MTU); err != nil {
				return nil, err
			}
		}
	}
	var late error
	var joined []netlink.Link
	devices := map[int]net.HardwareAddr{}
	for _, l := range links {
		n, err := a.place(l)
		switch {
		case errors.Is(err, ErrUnsupported):
			late = errors.Join(late, err)
		case err != nil:
			return nil, err
		default:
			joined = append(joined, l)
			devices[l.Attrs().Index] = n.mac
		}
	}
	nw, err := scan(joined)
	if err != nil {
		return nil, err
	}
	for _, n := range a.nics {
		if n.index == 0 {
			nw.Idle = append(nw.Idle, n.mac.String())
		}
	}
	for i, l := range joined {
		nw.Interfaces[i].Device = devices[l.Attrs().Index].String()
	}
	return nw, late
}

// place returns the device of an interface, which is joined to it now if it has
// not been.
func (a *Attachment) place(l netlink.Link) (*nic, error) {
	var free *nic
	for _, n := range a.nics {
		if n.index == l.Attrs().Index {
			return n, nil
		}
		if n.index == 0 && free == nil {
			free = n
		}
	}
	if err := checkLink(l); err != nil {
		return nil, err
	}
	if free == nil {
		return nil, fmt.Errorf("interface %s came after the virtual machine was made, which has no network device left for it (it has %d): "+
			"connect the container to fewer networks or, where the engine can, to all of them before it is created: %w", l.Attrs().Name, len(a.nics), ErrUnsupported)
	}
	return free, free.join(l)
}

// follow gives the tap the MTU of the interface, if that has changed.
func (n *nic) follow(mtu int) error {
	tap, err := netlink.LinkByName(n.tap)
	if err == nil && tap.Attrs().MTU != mtu {
		err = netlink.LinkSetMTU(tap, mtu)
	}
	if err != nil {
		return fmt.Errorf("tap device of %s: %w", n.name, err)
	}
	return nil
}

// leave undoes join. The interface may have been removed. What the guest sends
// must not reach the namespace itself when nothing redirects it any more.
func (n *nic) leave() error {
	if n.index == 0 {
		return nil
	}
	var errs []error
	for _, find := range []func() (netlink.Link, error){
		func() (netlink.Link, error) { return netlink.LinkByIndex(n.index) },
		n.down,
	} {
		var gone netlink.LinkNotFoundError
		l, err := find()
		if err == nil {
			err = netlink.QdiscDel(ingress(l))
		}
		// None there, or the interface is gone.
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) && !errors.As(err, &gone) {
			errs = append(errs, fmt.Errorf("restore %s: %w", n.name, err))
		}
	}
	n.index, n.name, n.answers = 0, "", false
	return errors.Join(errs...)
}

// down sets the tap down and returns it.
func (n *nic) down() (netlink.Link, error) {
	tap, err := netlink.LinkByName(n.tap)
	if err == nil {
		err = netlink.LinkSetDown(tap)
	}
	return tap, err
}

// openTap makes a tap device in the thread's namespace. One that is not to stay
// is removed by a crash of all that hold it.
func openTap(stay bool) (*os.File, string, error) {
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
	if err == nil && stay {
		err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
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

// taken tells whether what arrives at an interface goes to another device of a machine,
// which lives: someone has it open.
func taken(l, tap netlink.Link) (bool, error) {
	filters, err := netlink.FilterList(l, netlink.MakeHandle(0xffff, 0))
	if err != nil {
		return false, fmt.Errorf("list filters: %w", err)
	}
	for _, f := range filters {
		u, ok := f.(*netlink.U32)
		if !ok {
			continue
		}
		for _, action := range u.Actions {
			m, ok := action.(*netlink.MirredAction)
			if !ok || m.Ifindex <= 0 || m.Ifindex == tap.Attrs().Index { // one that is gone has no number
				continue
			}
			var gone netlink.LinkNotFoundError
			to, err := netlink.LinkByIndex(m.Ifindex)
			if err != nil && !errors.As(err, &gone) {
				return false, fmt.Errorf("find the device of another machine: %w", err)
			}
			if err == nil && strings.HasPrefix(to.Attrs().Name, tapPrefix) && to.Attrs().RawFlags&unix.IFF_RUNNING != 0 {
				return true, nil
			}
		}
	}
	return false, nil
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
			LinkIndex: from.Attrs().Index, Parent: netlink.MakeHandle(0xffff, 0), Priority: redirectLast, Protocol: unix.ETH_P_ALL,
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

// Close takes the junction apart and leaves the namespace as it was, unless it is
// one that goes anyway. A namespace whose interfaces have been removed meanwhile is
// no error.
func (a *Attachment) Close() error {
	var errs []error
	if a.ns != nil && len(a.nics) > 0 && !a.own {
		errs = append(errs, inNS(a.ns, a.detach))
	}
	for _, n := range a.nics {
		errs = append(errs, n.file.Close())
	}
	if a.ns != nil {
		errs = append(errs, a.ns.Close())
	}
	a.ns, a.nics = nil, nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("detach network: %w", err)
	}
	return nil
}

// detach runs in the namespace.
func (a *Attachment) detach() error {
	var errs []error
	for _, n := range a.nics {
		errs = append(errs, n.leave())
	}
	if a.group == 0 {
		return errors.Join(errs...) // before there was any
	}
	// Deleted, though they would go with their last user: that may be a VMM
	// which does not end. All at once, as the kernel takes its time for each
	// step, not for each device.
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(uint32(a.group))))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENODEV) {
		errs = append(errs, fmt.Errorf("delete tap devices: %w", err))
	}
	return errors.Join(errs...)
}
