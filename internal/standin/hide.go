package standin

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// hide takes the host's files out of our mount namespace and leaves an empty
// directory with a /proc of our processes. Engines enter the namespaces of a container by its pid, to copy files
// for example: Podman would copy to and from the host. Nothing is opened by a path
// from here on. dir is any directory that there is.
func hide(dir string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	proc := filepath.Join(dir, "proc")
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"mount an empty root", func() error { return unix.Mount("tmpfs", dir, "tmpfs", flags, "size=4k,mode=555") }},
		{"make /proc", func() error { return unix.Mkdir(proc, 0o555) }},
		{"mount /proc", func() error { return unix.Mount("proc", proc, "proc", flags|unix.MS_RDONLY, "") }},
		{"make it read-only", func() error { return unix.Mount("", dir, "", unix.MS_REMOUNT|flags|unix.MS_RDONLY, "") }},
		{"enter it", func() error { return unix.Chdir(dir) }},
		{"make it the root", func() error { return unix.PivotRoot(".", ".") }},
		{"leave the host's", func() error { return unix.Unmount(".", unix.MNT_DETACH) }},
		{"enter it", func() error { return unix.Chdir("/") }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("hide the host's files: %s: %w", step.name, err)
		}
	}
	return nil
}
