package pod

import (
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/seed-efd44b36/kata/internal/agent/jail"
)

const sysctlDir = "/proc/sys/"

// setSysctls sets sysctls of the guest's network and IPC namespaces, which are the
// pod's.
func setSysctls(values map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(values)) {
		file, err := sysctlFile(k)
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(values[k]), 0); err != nil {
			return fmt.Errorf("set sysctl %s: %w", k, err)
		}
	}
	return nil
}

// sysctlFile returns the file of a sysctl that a pod may have. As with sysctl(8), if
// the first separator is a slash then slashes separate and dots are part of names.
func sysctlFile(key string) (string, error) {
	name := key
	if dot, slash := strings.IndexByte(key, '.'), strings.IndexByte(key, '/'); slash < 0 || dot >= 0 && dot < slash {
		name = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	if !filepath.IsLocal(name) || path.Clean(name) != name {
		return "", fmt.Errorf("sysctl %q: %w", key, ErrInvalid)
	}
	if !strings.HasPrefix(name, "net/") && !jail.IPCSysctl(name) {
		return "", fmt.Errorf("sysctl %s is not of the network or IPC: %w", key, ErrInvalid)
	}
	return sysctlDir + name, nil
}
