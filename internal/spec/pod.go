package spec

import (
	"path"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// AddMounts adds what a container has of its pod, unless it has a mount of its own
// there: read-only where its root is.
func AddMounts(sp *specs.Spec, mounts []specs.Mount) {
	for _, m := range mounts {
		if slices.ContainsFunc(sp.Mounts, func(own specs.Mount) bool { return path.Clean(own.Destination) == m.Destination }) {
			continue
		}
		if sp.Root != nil && sp.Root.Readonly {
			m.Options = append(slices.Clone(m.Options), "ro")
		}
		sp.Mounts = append(sp.Mounts, m)
	}
}
