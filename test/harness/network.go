package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// removeNetwork removes what kata keeps of its default network while no
// container is attached: the bridge and two or three firewall rules.
func (e *Env) removeNetwork() error {
	if _, err := os.Stat(filepath.Join("/sys/class/net", e.Bridge)); errors.Is(err, fs.ErrNotExist) {
		return nil // never used
	}
	var errs []error
	if out, err := exec.Command("ip", "link", "delete", e.Bridge).CombinedOutput(); err != nil {
		errs = append(errs, fmt.Errorf("ip link delete %s: %w: %s", e.Bridge, err, out))
	}
	for _, table := range []string{"nat", "filter"} {
		rules, err := rules(table)
		errs = append(errs, err)
		for _, r := range rules {
			words := strings.Fields(r)
			if words[0] != "-A" || !slices.Contains(words, e.Bridge) {
				continue
			}
			args := append([]string{"-w", "-t", table, "-D"}, words[1:]...)
			if out, err := exec.Command("iptables", args...).CombinedOutput(); err != nil {
				errs = append(errs, fmt.Errorf("iptables %q: %w: %s", args, err, out))
			}
		}
	}
	return errors.Join(errs...)
}

// rules are the chains and rules of a table in the form of iptables-save.
func rules(table string) ([]string, error) {
	out, err := exec.Command("iptables-save", "-t", table).Output()
	if err != nil {
		return nil, fmt.Errorf("iptables-save: %w", err)
	}
	return slices.DeleteFunc(strings.Split(string(out), "\n"), func(l string) bool { return l == "" || l[0] == '#' }), nil
}
