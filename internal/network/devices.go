package network

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Devices are those of a machine that runs, joined to nothing, in a namespace that
// has nothing else.
type Devices struct {
	// NS is the namespace, Taps are the devices in the machine's order. They are the
	// caller's to close: an attachment works on duplicates.
	NS   *os.File
	Taps []*os.File
}

// Devices returns duplicates of those of an attachment that is joined to nothing and
// has a namespace. The caller closes them.
func (a *Attachment) Devices() (d Devices, err error) {
	if d.NS, err = dup(a.ns); err != nil {
		return d, err
	}
	for _, n := range a.nics {
		tap, err := dup(n.file)
		if err != nil {
			return d, err
		}
		d.Taps = append(d.Taps, tap)
	}
	return d, nil
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// Count is how many interfaces there are in the namespace at path for a guest to
// have.
func Count(path string) (n int, err error) {
	ns, err := OpenNS(path)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	err = inNS(ns, func() error {
		links, err := findLinks()
		n = len(links)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("look into network namespace %s: %w", path, err)
	}
	return n, nil
}

// Attach is the function Attach for a machine that runs already: its devices move
// into the namespace at path.
func (d Devices) Attach(ctx context.Context, path string) (*Attachment, error) {
	return (&Attachment{given: &d}).to(ctx, path, len(d.Taps))
}

// Replace is AttachOwn for a machine that runs already, in place of the namespace that
// is mounted at path, of which nobody knows yet: what is mounted there is then the
// devices' own.
func (d Devices) Replace(ctx context.Context, path string) (*Attachment, error) {
	if err := cleanup.Unmount(path); err != nil {
		return nil, err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", d.NS.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("mount network namespace %s: %w", path, err)
	}
	return (&Attachment{given: &d, own: true}).to(ctx, path, len(d.Taps))
}

// Idle is the function Idle for a machine that runs already.
func (d Devices) Idle() (*Attachment, error) {
	a := &Attachment{own: true, given: &d}
	if err := inNS(d.NS, func() error { return a.spare(len(d.Taps)) }); err != nil {
		return nil, fmt.Errorf("take network devices over: %w", errors.Join(err, a.Close()))
	}
	a.idle()
	return a, nil
}

// moveTo moves the devices into the namespace, unless it is theirs. Those that are
// not to stay in it are removed by a crash of all that hold them.
func (d Devices) moveTo(ns *os.File, stay bool) error {
	if same, err := sameFile(d.NS, ns); err != nil || same {
		return err
	}
	return inNS(d.NS, func() error {
		for _, tap := range d.Taps {
			if !stay {
				if err := unix.IoctlSetInt(int(tap.Fd()), unix.TUNSETPERSIST, 0); err != nil {
					return fmt.Errorf("tap device: %w", err)
				}
			}
			name, err := tapName(tap)
			if err != nil {
				return err
			}
			if err := move(name, ns); err != nil {
				return fmt.Errorf("move tap device %s: %w", name, err)
			}
		}
		return nil
	})
}

func sameFile(a, b *os.File) (bool, error) {
	sa, err := a.Stat()
	if err != nil {
		return false, err
	}
	sb, err := b.Stat()
	return err == nil && os.SameFile(sa, sb), err
}

// move moves an interface of the thread's namespace into another one, where it gets
// another name if its own is taken.
func move(name string, ns *os.File) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index = int32(l.Attrs().Index)
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.AddData(info)
	req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns.Fd()))))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(tapPrefix+"%d")))
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// take returns a duplicate of the device with the number i, and its name.
func (d Devices) take(i int) (*os.File, string, error) {
	if i >= len(d.Taps) {
		return nil, "", fmt.Errorf("more than the %d interfaces that the machine has devices for: %w", len(d.Taps), ErrUnsupported)
	}
	name, err := tapName(d.Taps[i])
	if err != nil {
		return nil, "", err
	}
	f, err := dup(d.Taps[i])
	return f, name, err
}

// tapName is the name of the device in the namespace that it is in.
func tapName(tap *os.File) (string, error) {
	ifr, err := unix.NewIfreq("")
	if err == nil {
		err = unix.IoctlIfreq(int(tap.Fd()), unix.TUNGETIFF, ifr)
	}
	if err != nil {
		return "", fmt.Errorf("tap device: %w", err)
	}
	return ifr.Name(), nil
}
