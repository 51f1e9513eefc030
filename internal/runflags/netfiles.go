package runflags

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// NetFiles is the content of the files that tell a container its names.
type NetFiles struct {
	Hostname string
	// Addresses of the container, with or without prefix length.
	Addresses []string
	// Nameservers as IP addresses, and the domains to search.
	Nameservers []string
	Search      []string
}

// WriteNetFiles writes hostname, hosts and resolv.conf into dir, the directory
// that was [Input.Dir]. They must be there when the container is created, and
// the container may change them.
func WriteNetFiles(dir string, n NetFiles) error {
	var hosts, resolv bytes.Buffer
	hosts.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	addresses := n.Addresses
	if len(addresses) == 0 {
		addresses = []string{"127.0.1.1"} // its own name is found without a network, too
	}
	names := n.Hostname
	if first, _, ok := strings.Cut(n.Hostname, "."); ok {
		names += " " + first
	}
	for _, a := range addresses {
		ip, _, _ := strings.Cut(a, "/")
		fmt.Fprintf(&hosts, "%s\t%s\n", ip, names)
	}
	for _, s := range n.Nameservers {
		fmt.Fprintf(&resolv, "nameserver %s\n", s)
	}
	if len(n.Search) > 0 {
		fmt.Fprintf(&resolv, "search %s\n", strings.Join(n.Search, " "))
	}
	for name, content := range map[string][]byte{
		hostnameFile: []byte(n.Hostname + "\n"), hostsFile: hosts.Bytes(), resolvFile: resolv.Bytes(),
	} {
		if err := writePublic(filepath.Join(dir, name), content); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// writePublic replaces a file by one that every user of the container can
// read. The old one may have been left by a container, so it is not written to.
func writePublic(name string, content []byte) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// HostResolver returns the name servers and search domains of this host that a
// container can reach: those on the host's loopback interface are left out. With
// systemd's local resolver, what is behind it is taken.
func HostResolver() (nameservers, search []string, err error) {
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		data, rerr := os.ReadFile(file)
		if rerr != nil {
			if err == nil {
				err = fmt.Errorf("name servers of this host: %w", rerr)
			}
			continue
		}
		if nameservers, search = parseResolv(data); len(nameservers) > 0 {
			return nameservers, search, nil
		}
	}
	return nameservers, search, err
}

func parseResolv(data []byte) (nameservers, search []string) {
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			a, err := netip.ParseAddr(fields[1])
			if err == nil && !a.IsLoopback() && a.Zone() == "" {
				nameservers = append(nameservers, a.String())
			}
		case "search", "domain":
			search = fields[1:]
		}
	}
	return nameservers, search
}
