package runflags

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxPorts bounds what one range may stand for, in all.
const maxPorts = 1000

// Port is a port of the host that is forwarded to the container.
type Port struct {
	// HostIP is the address to listen at, "" for all.
	HostIP string
	// HostPort and ContainerPort are from 1 to 65535.
	HostPort, ContainerPort uint16
	// Protocol is "tcp" or "udp".
	Protocol string
}

// String is the form of `kata ps`.
func (p Port) String() string {
	host := p.HostIP
	if host == "" {
		host = "0.0.0.0"
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return fmt.Sprintf("%s:%d->%d/%s", host, p.HostPort, p.ContainerPort, p.Protocol)
}

func (f *Flags) network(p *Plan) error {
	var errs []error
	switch {
	case f.Network == "host", strings.HasPrefix(f.Network, "container:"):
		errs = append(errs, fmt.Errorf("--network %s: a virtual machine has its own network; use none, %s or the name of a CNI network", f.Network, DefaultNetwork))
	case !isName(f.Network):
		errs = append(errs, fmt.Errorf("--network %q: not the name of a network", f.Network))
	}
	for _, s := range f.Publish {
		ports, err := ParsePorts(s)
		errs = append(errs, err)
		for _, port := range ports {
			if slices.ContainsFunc(p.Ports, port.overlaps) {
				errs = append(errs, fmt.Errorf("--publish %q: port %d/%s of the host is taken twice", s, port.HostPort, port.Protocol))
				break
			}
			p.Ports = append(p.Ports, port)
		}
	}
	if len(p.Ports) > 0 && f.Network == NoNetwork {
		errs = append(errs, errors.New("--publish needs a network, not --network none"))
	}
	for _, s := range f.DNS {
		a, err := netip.ParseAddr(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("--dns %q: not an IP address", s))
			continue
		}
		p.Nameservers = append(p.Nameservers, a.String())
	}
	p.Sysctls = map[string]string{}
	if f.Network != NoNetwork {
		// Docker's: a process needs no privilege for ping and low ports.
		p.Sysctls["net.ipv4.ping_group_range"] = "0 2147483647"
		p.Sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
	}
	return errors.Join(errs...)
}

func (p Port) overlaps(o Port) bool {
	return p.HostPort == o.HostPort && p.Protocol == o.Protocol && (p.HostIP == o.HostIP || p.HostIP == "" || o.HostIP == "")
}

// ParsePorts reads [ADDRESS:]HOSTPORT:PORT[/PROTOCOL], where both ports may be
// ranges of the same length and an IPv6 address stands in brackets.
func ParsePorts(s string) ([]Port, error) {
	fail := func(why string) ([]Port, error) {
		return nil, fmt.Errorf("--publish %q: %s; want [ADDRESS:]HOSTPORT:PORT[/tcp|udp]", s, why)
	}
	spec, protocol, found := strings.Cut(s, "/")
	if !found {
		protocol = "tcp"
	}
	protocol = strings.ToLower(protocol)
	if protocol != "tcp" && protocol != "udp" {
		return fail("unknown protocol")
	}
	i := strings.LastIndexByte(spec, ':')
	if i < 0 {
		return fail("no port of the host")
	}
	host, container := spec[:i], spec[i+1:]
	ip := ""
	if j := strings.LastIndexByte(host, ':'); j >= 0 {
		ip, host = host[:j], host[j+1:]
		bracketed := strings.HasPrefix(ip, "[") && strings.HasSuffix(ip, "]")
		if bracketed {
			ip = ip[1 : len(ip)-1]
		}
		a, err := netip.ParseAddr(ip)
		if err != nil || a.Zone() != "" || a.Is6() != bracketed {
			return fail("not an IP address")
		}
		ip = a.String()
		if a.IsUnspecified() && a.Is4() {
			ip = ""
		}
	}
	h1, h2, err := portRange(host)
	if err != nil {
		return fail(err.Error())
	}
	c1, c2, err := portRange(container)
	if err != nil {
		return fail(err.Error())
	}
	if h2-h1 != c2-c1 {
		return fail("ranges of different length")
	}
	if h2-h1 >= maxPorts {
		return fail(fmt.Sprintf("more than %d ports", maxPorts))
	}
	var ports []Port
	for n := range h2 - h1 + 1 {
		ports = append(ports, Port{HostIP: ip, HostPort: uint16(h1 + n), ContainerPort: uint16(c1 + n), Protocol: protocol})
	}
	return ports, nil
}

func portRange(s string) (from, to int, err error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	for _, v := range []struct {
		text string
		to   *int
	}{{first, &from}, {last, &to}} {
		n, err := strconv.ParseUint(v.text, 10, 16)
		if err != nil || n == 0 {
			return 0, 0, fmt.Errorf("%q is not a port", v.text)
		}
		*v.to = int(n)
	}
	if to < from {
		return 0, 0, fmt.Errorf("range %q goes backwards", s)
	}
	return from, to, nil
}

// ParseSignal understands a number or a name, with or without SIG.
func ParseSignal(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > 64 {
			return 0, fmt.Errorf("signal %q: want 1 to 64", s)
		}
		return n, nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if rest, ok := strings.CutPrefix(name, "SIGRTMIN"); ok {
		// As numbered by the C library, which keeps 32 and 33 to itself.
		n, err := strconv.Atoi(strings.TrimPrefix(rest, "+"))
		if rest == "" {
			n, err = 0, nil
		}
		if err == nil && n >= 0 && n <= 30 {
			return 34 + n, nil
		}
	}
	if n := unix.SignalNum(name); n != 0 {
		return int(n), nil
	}
	return 0, fmt.Errorf("signal %q: there is no such signal", s)
}
