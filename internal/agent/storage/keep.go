package storage

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The directories, or links to them, in which programs look for libraries, and for
// other programs, each after the one that it is in.
var (
	libraries = [...]string{"lib", "lib64", "usr", "usr/lib", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "etc"}
	programs  = [...]string{"bin", "usr/bin", "sbin", "usr/sbin", "usr/lib64", "usr/local", "usr/local/bin"}
)

// Kept are directories that the kernel does not forget. The first is the root.
type Kept []int

// Keep lets the kernel remember the directories of a root file system in which
// programs look for libraries, until it is closed, and with More those in which they
// look for programs. By 9p the host is
// asked for each part of a path each time, three requests a part and more, but for
// what is in use: half of all that a small program with a library asks before it
// begins. A directory that the host puts in place of one of these is not seen.
//
// To look takes time, too: what the first program does not need is for later.
func Keep(root string) (Kept, error) {
	top, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("keep directories: %w", &os.PathError{Op: "open", Path: root, Err: err})
	}
	return Kept{top}.and(libraries[:]), nil
}

// More keeps what Keep has left for later.
func (k Kept) More() Kept { return k.and(programs[:]) }

// and keeps further directories.
func (k Kept) and(names []string) Kept {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for _, name := range names {
		// There is none, or it is below a link, or there is no room: others will do.
		if fd, err := unix.Openat2(k[0], name, &how); err == nil {
			k = append(k, fd)
		}
	}
	return k
}

// Close lets the kernel forget them.
func (k Kept) Close() {
	for _, fd := range k {
		_ = unix.Close(fd)
	}
}
