// Package cni joins a network namespace to a network of the host by CNI
// plugins: to the default network, which is a bridge with forwarded ports and
// needs no configuration file, or to a named one of /etc/cni/net.d.
//
// kata-proxy calls it for `kata run`; under containerd or another engine the
// namespace comes ready. What a set-up has made is removed by [Networks.Teardown]
// from the sandbox's id and network alone, also after a crash in the middle
// of it. The plugins run as root and are trusted, as are files below
// /etc/cni/net.d.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/seed-efd44b36/kata/internal/flock"
	"golang.org/x/sys/unix"
)

// ErrNotFound says that there is no network of that name.
var ErrNotFound = errors.New("network not found")

const (
	// DefaultNetwork is the network that is made by this package.
	DefaultNetwork = "kata"
	// ConfDir is where the host's administrator puts other networks.
	ConfDir = "/etc/cni/net.d"
	// ifName is the interface's name in the namespace.
	ifName = "eth0"
	// portCapability is what CNI calls forwarded ports.
	portCapability = "portMappings"
	// timeout bounds one plugin chain. The plugins wait for the iptables
	// lock, which other programs may hold for a while.
	timeout = 30 * time.Second
	// cniVersion is the newest that Debian 12's plugins know.
	cniVersion = "1.0.0"
)

// Networks makes and removes attachments to networks.
type Networks struct {
	// BinDirs are searched for plugins.
	BinDirs []string
	// ConfDir holds the configuration of named networks.
	ConfDir string
	// Dir keeps what is attached and which addresses are taken. It belongs on
	// a tmpfs, since neither outlives a reboot, and must not be inside the
	// directory of sandboxes.
	Dir string
	// Bridge and Subnet (CIDR, IPv4) of the default network.
	Bridge, Subnet string
}

// Port is a port of the host that leads to the container.
type Port struct {
	// HostIP is the address to listen at, "" for all of IPv4.
	HostIP string
	// HostPort and ContainerPort are from 1 to 65535.
	HostPort, ContainerPort uint16
	// Protocol is "tcp" or "udp".
	Protocol string
}

// Attachment names what is to be attached to which network.
type Attachment struct {
	// Network is the network's name, ID that of the sandbox.
	Network, ID string
	// NetNS is the path of the network namespace.
	NetNS string
	// Ports to forward. Teardown remembers them.
	Ports []Port
}

// Result is what the network has given to the namespace.
type Result struct {
	// Addresses are of the form ADDRESS/PREFIX.
	Addresses []string
	// Nameservers and Search domains, where the network has its own.
	Nameservers, Search []string
}

// Setup attaches the namespace to the network. When it fails, nothing is left
// that [Networks.Teardown] is needed for, unless the error says so.
func (n *Networks) Setup(ctx context.Context, a Attachment) (Result, error) {
	list, err := n.network(a.Network)
	if err != nil {
		return Result{}, err
	}
	if err := n.check(list, a); err != nil {
		return Result{}, err
	}
	lock, err := n.lock(ctx)
	if err != nil {
		return Result{}, err
	}
	defer lock.Close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if a.Network == DefaultNetwork {
		if err := n.ensureRules(ctx); err != nil {
			return Result{}, fmt.Errorf("network %s: %w", a.Network, err)
		}
	}
	raw, err := n.libcni(lock).AddNetworkList(ctx, list, runtimeConf(a))
	var result Result
	if err == nil {
		result, err = convert(raw, a)
	}
	if err != nil {
		err = fmt.Errorf("attach to network %s: %w", a.Network, err)
		return Result{}, errors.Join(err, n.teardown(context.WithoutCancel(ctx), a, lock))
	}
	return result, nil
}

// Teardown detaches the namespace, which need not exist any more, and frees its
// addresses and ports. It can be called again, and for what was never set up. Of
// a, Network and ID are needed.
func (n *Networks) Teardown(ctx context.Context, a Attachment) error {
	lock, err := n.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	return n.teardown(ctx, a, lock)
}

func (n *Networks) teardown(ctx context.Context, a Attachment, lock *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c := n.libcni(lock)
	attachments, err := c.GetCachedAttachments(a.ID)
	if err != nil {
		return fmt.Errorf("detach from network %s: %w", a.Network, err)
	}
	var errs []error
	for _, at := range attachments {
		// As it was set up, even if the configuration has changed since.
		list, err := libcni.NetworkConfFromBytes(at.Config)
		if err == nil {
			rt := &libcni.RuntimeConf{
				ContainerID: at.ContainerID, NetNS: existing(at.NetNS), IfName: at.IfName,
				Args: at.CniArgs, CapabilityArgs: at.CapabilityArgs,
			}
			err = c.DelNetworkList(ctx, list, rt)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("detach from network %s: %w", at.Network, err))
		}
	}
	if len(attachments) > 0 {
		return errors.Join(errs...)
	}
	// Nothing on record: a set-up may have been interrupted before that.
	list, err := n.network(a.Network)
	if errors.Is(err, ErrNotFound) {
		return nil // then it was not there to be attached to
	}
	if err != nil {
		return err
	}
	rt := runtimeConf(a)
	rt.NetNS = existing(a.NetNS)
	if err := c.DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("detach from network %s: %w", a.Network, err)
	}
	return nil
}

// existing returns the path, or "" when no namespace is there: plugins take that
// for one that is gone already. The file stays when the mount has gone with the
// mount namespace of a process that was killed.
func existing(netns string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(netns, &st); err != nil || st.Type != unix.NSFS_MAGIC && st.Type != unix.PROC_SUPER_MAGIC {
		return ""
	}
	return netns
}

func (n *Networks) libcni(lock *os.File) *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir(n.BinDirs, n.Dir, &plugins{lock: lock})
}

// portMapping is how CNI wants it.
type portMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

func runtimeConf(a Attachment) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: a.ID, NetNS: a.NetNS, IfName: ifName}
	if len(a.Ports) > 0 {
		var ports []portMapping
		for _, p := range a.Ports {
			ports = append(ports, portMapping{HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: p.Protocol, HostIP: p.HostIP})
		}
		rt.CapabilityArgs = map[string]any{portCapability: ports}
	}
	return rt
}

func convert(raw types.Result, a Attachment) (Result, error) {
	res, err := types100.NewResultFromResult(raw)
	if err != nil {
		return Result{}, err
	}
	var r Result
	has6 := false
	for _, ip := range res.IPs {
		r.Addresses = append(r.Addresses, ip.Address.String())
		has6 = has6 || ip.Address.IP.To4() == nil
	}
	r.Nameservers, r.Search = res.DNS.Nameservers, res.DNS.Search
	if len(r.Search) == 0 && res.DNS.Domain != "" {
		r.Search = []string{res.DNS.Domain}
	}
	if len(r.Addresses) == 0 {
		return Result{}, errors.New("the plugins gave no address")
	}
	for _, p := range a.Ports {
		if ip, err := netip.ParseAddr(p.HostIP); err == nil && ip.Is6() && !has6 {
			return Result{}, fmt.Errorf("port %d cannot be forwarded from %s: the network has no IPv6", p.HostPort, p.HostIP)
		}
	}
	return r, nil
}

// network finds the configuration of a network.
func (n *Networks) network(name string) (*libcni.NetworkConfigList, error) {
	if name == DefaultNetwork {
		return n.defaultNetwork()
	}
	known := []string{DefaultNetwork}
	files, err := libcni.ConfFiles(n.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("networks in %s: %w", n.ConfDir, err)
	}
	slices.Sort(files)
	var broken []error
	for _, file := range files {
		list, err := loadFile(file)
		switch {
		case err != nil:
			broken = append(broken, fmt.Errorf("%s: %w", file, err))
		case list.Name == name:
			return list, nil
		default:
			known = append(known, list.Name)
		}
	}
	err = fmt.Errorf("%w: %q is not configured in %s; there are %s", ErrNotFound, name, n.ConfDir, strings.Join(known, ", "))
	return nil, errors.Join(append([]error{err}, broken...)...)
}

func loadFile(file string) (*libcni.NetworkConfigList, error) {
	if strings.HasSuffix(file, ".conflist") {
		return libcni.NetworkConfFromFile(file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	// The older form is one plugin with the name of the network in it.
	var list struct {
		CNIVersion string            `json:"cniVersion"`
		Name       string            `json:"name"`
		Plugins    []json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	list.Plugins = []json.RawMessage{data}
	if data, err = json.Marshal(list); err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(data)
}

// conf, plugin and ipam are the configuration of the default network.
type conf struct {
	CNIVersion string   `json:"cniVersion"`
	Name       string   `json:"name"`
	Plugins    []plugin `json:"plugins"`
}

type plugin struct {
	Type         string          `json:"type"`
	Bridge       string          `json:"bridge,omitempty"`
	IsGateway    bool            `json:"isGateway,omitempty"`
	HairpinMode  bool            `json:"hairpinMode,omitempty"`
	IPAM         *ipam           `json:"ipam,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
}

type ipam struct {
	Type    string                `json:"type"`
	Ranges  [][]map[string]string `json:"ranges"`
	Routes  []map[string]string   `json:"routes"`
	DataDir string                `json:"dataDir"`
}

func (n *Networks) defaultNetwork() (*libcni.NetworkConfigList, error) {
	prefix, err := netip.ParsePrefix(n.Subnet)
	if err != nil || !prefix.Addr().Is4() || prefix.Bits() > 29 {
		return nil, fmt.Errorf("subnet %q of network %s: want IPv4 as 10.87.0.0/16, with at most 29 bits (configuration key network.subnet)", n.Subnet, DefaultNetwork)
	}
	data, err := json.Marshal(conf{
		CNIVersion: cniVersion,
		Name:       DefaultNetwork,
		Plugins: []plugin{
			{
				Type: "bridge", Bridge: n.Bridge, IsGateway: true, HairpinMode: true,
				IPAM: &ipam{
					Type:    "host-local",
					Ranges:  [][]map[string]string{{{"subnet": prefix.Masked().String()}}},
					Routes:  []map[string]string{{"dst": "0.0.0.0/0"}},
					DataDir: filepath.Join(n.Dir, "addresses"),
				},
			},
			{Type: "portmap", Capabilities: map[string]bool{portCapability: true}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", DefaultNetwork, err)
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", DefaultNetwork, err)
	}
	return list, nil
}

// lock keeps set-ups apart, until the file is closed: the plugins make shared
// chains and bridges and not all of them expect company.
func (n *Networks) lock(ctx context.Context) (*os.File, error) {
	if err := os.MkdirAll(n.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("lock networks: %w", err)
	}
	f, err := flock.Exclusive(ctx, filepath.Join(n.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("networks: %w", err)
	}
	return f, nil
}
