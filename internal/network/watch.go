package network

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// quiet is how long nothing must have happened before a change is told:
	// an interface comes in several steps.
	quiet = 50 * time.Millisecond
	// noise is how long a change waits for that at most.
	noise = time.Second
)

// watch notices changes in a namespace.
type watch struct{ socket *os.File }

// watch begins to watch the namespace. The caller closes the watch.
func (a *Attachment) watch() (*watch, error) {
	var w watch
	err := inNS(a.ns, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("netlink socket: %w", err)
		}
		w.socket = os.NewFile(uintptr(fd), "netlink")
		var groups uint32
		for _, g := range []int{
			unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE,
			unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
		} {
			groups |= 1 << (g - 1)
		}
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
	})
	if err != nil {
		if w.socket != nil {
			_ = w.socket.Close()
		}
		return nil, fmt.Errorf("watch network namespace %s: %w", a.ns.Name(), err)
	}
	return &w, nil
}

// wait returns when something has changed since the watch began or the last wait.
// The error wraps os.ErrClosed after close.
func (w *watch) wait() error {
	// What the messages say does not matter: all is read anew.
	buf := make([]byte, 1<<12)
	if err := w.read(buf, time.Time{}); err != nil {
		return err
	}
	for end := time.Now().Add(noise); time.Now().Before(end); {
		err := w.read(buf, time.Now().Add(quiet))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *watch) read(buf []byte, deadline time.Time) error {
	_ = w.socket.SetReadDeadline(deadline) // fails when closed, which Read tells better
	// More than the socket could hold is a change as well.
	if _, err := w.socket.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
		return fmt.Errorf("watch network namespace: %w", err)
	}
	return nil
}

// close ends the watch, and a wait.
func (w *watch) close() error { return w.socket.Close() }
