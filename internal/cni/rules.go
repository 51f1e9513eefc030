package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// rule is an iptables rule of the default network.
type rule struct {
	table, chain string
	// first puts it before what others have there.
	first bool
	match []string
}

// rules of the default network as a whole. They stay, as its bridge does, so that
// nothing but an address and ports is to be undone for each container; the CNI
// plugins that do the same per container leave rules behind when they are
// interrupted.
func (n *Networks) rules() []rule {
	return []rule{
		// Connections to elsewhere come from the host's address.
		{"nat", "POSTROUTING", false, []string{"-s", n.Subnet, "!", "-o", n.Bridge, "-j", "MASQUERADE"}},
		// Where the host drops what it forwards, as dockerd makes it do:
		// let out what containers send, and in the answers and what goes to
		// forwarded ports.
		{"filter", "FORWARD", true, []string{"-i", n.Bridge, "-j", "ACCEPT"}},
		{"filter", "FORWARD", true, []string{"-o", n.Bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED,DNAT", "-j", "ACCEPT"}},
	}
}

// ensureRules adds the rules that are not there.
func (n *Networks) ensureRules(ctx context.Context) error {
	path, err := findIptables()
	if err != nil {
		return err
	}
	for _, r := range n.rules() {
		if iptables(ctx, path, "-t", r.table, append([]string{"-C", r.chain}, r.match...)...) == nil {
			continue
		}
		add := "-A"
		if r.first {
			add = "-I"
		}
		if err := iptables(ctx, path, "-t", r.table, append([]string{add, r.chain}, r.match...)...); err != nil {
			return fmt.Errorf("add rule to %s/%s: %w", r.table, r.chain, err)
		}
	}
	return nil
}

// iptables runs the program, waiting for others that change rules.
func iptables(ctx context.Context, path, flag, table string, args ...string) error {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, slices.Concat([]string{"-w", flag, table}, args)...)
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("iptables: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

func findIptables() (string, error) {
	for dir := range strings.SplitSeq(systemPath, ":") {
		if path, err := exec.LookPath(dir + "/iptables"); err == nil {
			return path, nil
		}
	}
	return "", errors.New("no iptables, which the network needs; `apt-get install iptables` brings it, or use --network none")
}
