package module

import (
	"fmt"
	"os"
	"strings"
)

const (
	// List is where the initrd has the list of modules.
	List = "/etc/kata/modules"
	// Requester is the path by which the kernel starts the agent to have a
	// module loaded that it misses, for a container that makes a bridge for
	// example. It is where the kernel expects modprobe(8).
	Requester = "/sbin/modprobe"
)

// families are the beginnings of names by which the kernel asks for a module of
// a family, where the rest is the module's own name or, with another beginning,
// almost.
var families = []struct{ prefix, instead string }{
	{"rtnl-link-", ""},
	{"fs-", ""},
	{"ipt_", "xt_"},
	{"ip6t_", "xt_"},
}

// Main is the agent's main function under the name Requester. The arguments are
// those of modprobe: options, and the name that the kernel asks for.
func Main(args []string) int {
	s, err := Open(List)
	if err == nil {
		err = s.request(args)
	}
	if err != nil {
		// The kernel reads nothing but the code, and tells its caller that what
		// was asked for is not there.
		fmt.Fprintln(os.Stderr, "kata-agent:", err)
		return 1
	}
	return 0
}

// request loads what the kernel asks for.
func (s *Set) request(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("load a module: %w", os.ErrInvalid)
	}
	name := args[len(args)-1]
	names := []string{name}
	for _, f := range families {
		if rest, ok := strings.CutPrefix(name, f.prefix); ok {
			names = append(names, f.instead+rest)
		}
	}
	for _, n := range names {
		if _, ok := s.index[strings.ReplaceAll(n, "-", "_")]; ok {
			return s.Load(n)
		}
	}
	return fmt.Errorf("load module %s: %w", name, os.ErrNotExist)
}
