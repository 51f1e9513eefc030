package storage

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// usual are the directories, or links to them, in which programs look for programs
// and libraries, each after the one that it is in.
var usual = [...]string{
	"bin", "sbin", "lib", "lib64", "etc", "usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/local", "usr/local/bin",
	"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu",
}

// Kept are directories that the kernel does not forget.
type Kept []int

// Keep lets the kernel remember the directories of a root file system in which
// programs look for programs and libraries, until it is closed. By 9p the host is
// asked for each part of a path each time, three requests a part and more, but for
// what is in use: half of all that a small program with a library asks before it
// begins. A directory that the host puts in place of one of these is not seen.
func Keep(root string) (Kept, error) {
	top, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keep directories: %w", &os.PathError{Op: "open", Path: root, Err: err})
	}
	kept := Kept{top}
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for _, name := range usual {
		// There is none, or it is below a link, or there is no room: others will do.
		if fd, err := unix.Openat2(top, name, &how); err == nil {
			kept = append(kept, fd)
		}
	}
	return kept, nil
}

// Close lets the kernel forget them.
func (k Kept) Close() {
	for _, fd := range k {
		_ = unix.Close(fd)
	}
}
