package controller

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	criv1 "github.com/seed-efd44b36/kata/api/cri/v1"
)

// Files of the host that a pod without a configuration of its own gets copies of.
const (
	hostsFile  = "/etc/hosts"
	resolvFile = "/etc/resolv.conf"
)

// writeFiles writes the files that all containers of the pod have in /etc to
// dir, as containerd's own sandboxer would, and returns their mounts.
func writeFiles(dir string, conf *criv1.PodSandboxConfig) ([]specs.Mount, error) {
	hostname := conf.GetHostname()
	if hostname == "" {
		var err error
		if hostname, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("host name: %w", err)
		}
	}
	hosts, err := os.ReadFile(hostsFile)
	if err != nil {
		return nil, fmt.Errorf("hosts of the pod: %w", err)
	}
	resolv := []byte(resolvConf(conf.GetDnsConfig()))
	if conf.GetDnsConfig() == nil {
		if resolv, err = os.ReadFile(resolvFile); err != nil {
			return nil, fmt.Errorf("name servers of the pod: %w", err)
		}
	}
	var mounts []specs.Mount
	for _, f := range []struct {
		path string
		data []byte
	}{{"/etc/hostname", []byte(hostname + "\n")}, {hostsFile, hosts}, {resolvFile, resolv}} {
		source := filepath.Join(dir, filepath.Base(f.path))
		if err := os.WriteFile(source, f.data, 0o644); err != nil { // for all users of the pod
			return nil, fmt.Errorf("%s of the pod: %w", f.path, err)
		}
		mounts = append(mounts, specs.Mount{
			Destination: f.path, Type: "bind", Source: source, Options: []string{"rbind", "rprivate"},
		})
	}
	return mounts, nil
}

// resolvConf is a resolv.conf(5).
func resolvConf(dns *criv1.DNSConfig) string {
	var b strings.Builder
	if list := dns.GetSearches(); len(list) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(list, " "))
	}
	for _, server := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if list := dns.GetOptions(); len(list) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(list, " "))
	}
	return b.String()
}
