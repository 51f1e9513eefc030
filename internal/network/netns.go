// Package network gives a guest the network of a network namespace: it reads
// what the interface in there has (addresses, routes, neighbours), for the
// agent to replay, and joins the interface to a tap device for the VMM.
//
//	peer of the engine's  ==  eth0 in the namespace  <=tc=>  tap  ==  VMM  ==  eth0 of the guest
//
// Every frame that arrives at one of eth0 and tap is sent out of the other by a
// redirection of the kernel's traffic control, before the namespace's own
// stack sees it. So the interface keeps its addresses, as the engine and CNI
// plugins expect, and the guest has the same ones and the same MAC. It works
// with every kind of interface and needs no bridge.
//
// The namespace is the engine's, or made here (NewNS). Nothing that a guest
// sends is read here.
package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/thread"
	"golang.org/x/sys/unix"
)

// The kinds of namespaces that cannot be used, for errors.Is.
var (
	// ErrHostNetwork: the namespace is the host's own.
	ErrHostNetwork = errors.New("a virtual machine cannot use the host's network")
	// ErrUnsupported: the namespace has something that a guest cannot be given.
	ErrUnsupported = errors.New("not supported")
)

// nsMode is the mode of the file that a namespace is mounted on.
const nsMode = 0o444

// NewNS makes a network namespace and mounts it on a new file at path, whose
// directory must exist. It lives until DeleteNS. Record it in the ledger
// first, as a cleanup.KindNetns.
func NewNS(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL|unix.O_CLOEXEC, nsMode)
	if err != nil {
		return fmt.Errorf("create network namespace: %w", err)
	}
	f.Close()
	err = thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind mount: %w", err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("create network namespace %s: %w", path, errors.Join(err, os.Remove(path)))
	}
	return nil
}

// DeleteNS removes what NewNS has made. The namespace itself lives on while a
// process is in it. One that is not there is no error.
func DeleteNS(ctx context.Context, path string) error {
	return cleanup.Release(ctx, cleanup.Record{Kind: cleanup.KindNetns, Name: path})
}

// OpenNS opens a network namespace's file and makes sure that it is one, and not
// the host's. The caller closes it.
func OpenNS(path string) (*os.File, error) {
	// Nonblocking, lest a pipe in its place hang us.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("network namespace %s is gone: %w", path, err)
	}
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	if err := checkNS(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return f, nil
}

func checkNS(f *os.File) error {
	var fsStat unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fsStat); err != nil {
		return err
	}
	if fsStat.Type != unix.NSFS_MAGIC {
		return errors.New("it is not a namespace")
	}
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return errors.New("it is not a network namespace")
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	// Our own is the host's in every sense that matters: it is where we, and
	// not the guest, have our network.
	for _, host := range []string{"/proc/self/ns/net", "/proc/1/ns/net"} {
		if hst, err := os.Stat(host); err == nil && os.SameFile(st, hst) {
			return fmt.Errorf("%w; leave out --network host (hostNetwork: true in Kubernetes) or use another runtime for this container", ErrHostNetwork)
		}
	}
	return nil
}

// inNS runs f on a thread in the namespace.
func inNS(ns *os.File, f func() error) error {
	return thread.Run(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
		}
		return f()
	})
}
