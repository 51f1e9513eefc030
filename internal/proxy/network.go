package proxy

import (
	"context"
	"fmt"
	"path/filepath"

	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/cni"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/owner"
	"github.com/seed-efd44b36/kata/internal/sandbox"
)

// networks are the CNI networks of a configuration. What is attached is kept
// beside the directory of sandboxes: it must outlive any of them.
func networks(conf config.Config) *cni.Networks {
	return &cni.Networks{
		BinDirs: conf.Network.CNIBinDirs, ConfDir: cni.ConfDir, Dir: filepath.Clean(conf.Runtime.StateDir) + "-cni",
		Bridge: conf.Network.Bridge, Subnet: conf.Network.Subnet,
	}
}

// Releasers release what kata-proxy records beyond what cleanup itself knows.
func Releasers(conf config.Config) map[cleanup.Kind]cleanup.Releaser {
	return map[cleanup.Kind]cleanup.Releaser{cleanup.KindCNI: detach(networks(conf))}
}

// detach releases a record of KindCNI: Name is the network, ExtraNetns the
// namespace in the directory of its sandbox.
func detach(n *cni.Networks) cleanup.Releaser {
	return func(ctx context.Context, r cleanup.Record) error {
		netns := r.Extra[cleanup.ExtraNetns]
		return n.Teardown(ctx, cni.Attachment{Network: r.Name, ID: filepath.Base(filepath.Dir(netns)), NetNS: netns})
	}
}

// setupNetwork implements NetworkSetup with the CNI plugins of the host.
func setupNetwork(n *cni.Networks) NetworkSetup {
	return func(ctx context.Context, s *sandbox.Sandbox, req *proxyv1.CNI) (NetworkResult, error) {
		if err := n.Check(req.GetNetwork()); err != nil {
			return NetworkResult{}, err
		}
		a := cni.Attachment{Network: req.GetNetwork(), ID: s.ID()}
		for _, p := range req.GetPorts() {
			a.Ports = append(a.Ports, cni.Port{
				HostIP: p.GetHostIp(), HostPort: uint16(p.GetHostPort()),
				ContainerPort: uint16(p.GetContainerPort()), Protocol: p.GetProtocol(),
			})
		}
		// Held until this process ends, so that nobody else gets the ports.
		ports, err := cni.Reserve(ctx, a.Ports)
		if err != nil {
			return NetworkResult{}, err
		}
		s.OnClose("reserved ports", func(context.Context) error { return ports.Close() })
		if a.NetNS, err = owner.NewNetNS(ctx, s); err != nil {
			return NetworkResult{}, err
		}
		rec := cleanup.Record{Kind: cleanup.KindCNI, Name: a.Network, Extra: map[string]string{cleanup.ExtraNetns: a.NetNS}}
		if err := s.Own(rec, detach(n)); err != nil {
			return NetworkResult{}, err
		}
		res, err := n.Setup(ctx, a)
		if err != nil {
			return NetworkResult{}, fmt.Errorf("network %s: %w", a.Network, err)
		}
		return NetworkResult{NetNS: a.NetNS, Addresses: res.Addresses, Nameservers: res.Nameservers, Search: res.Search}, nil
	}
}
