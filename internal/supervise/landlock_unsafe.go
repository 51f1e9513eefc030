package supervise

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Access is the part of the file system that a child may open. Descriptors
// that it is given are not concerned.
type Access struct {
	// Read lists files and directories to read, list and execute.
	Read []string
	// Write lists directories in which everything is allowed, and device files
	// that may be used.
	Write []string
}

// Rights of Landlock by the ABI version that brought them.
const (
	fsRead = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	fsABI1 = 1<<13 - 1
	fsABI2 = unix.LANDLOCK_ACCESS_FS_REFER
	fsABI3 = unix.LANDLOCK_ACCESS_FS_TRUNCATE
	fsABI5 = unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	fsFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE |
		unix.LANDLOCK_ACCESS_FS_WRITE_FILE | fsABI3 | fsABI5
	netABI4   = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	scopeABI6 = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
)

// LandlockABI returns the version of Landlock that the kernel has, 0 for none.
// With 0 a child's Access is not enforced; with 6 or more, it cannot signal
// other processes or use TCP either.
func LandlockABI() int {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(abi)
}

// handled returns what a ruleset for this kernel forbids by default.
func handled(abi int) unix.LandlockRulesetAttr {
	a := unix.LandlockRulesetAttr{Handled_access_fs: fsABI1}
	if abi >= 2 {
		a.Handled_access_fs |= fsABI2
	}
	if abi >= 3 {
		a.Handled_access_fs |= fsABI3
	}
	if abi >= 4 {
		a.Handled_access_net = netABI4
	}
	if abi >= 5 {
		a.Handled_access_fs |= fsABI5
	}
	if abi >= 6 {
		a.Scoped = scopeABI6
	}
	return a
}

// size is how much of the structure this kernel knows.
func size(abi int) uintptr {
	switch {
	case abi >= 6:
		return 24
	case abi >= 4:
		return 16
	default:
		return 8
	}
}

// restrict leaves the calling thread, and with it its children, nothing of the
// file system but what access lists. Without Landlock it does nothing. The
// thread must have no_new_privs or CAP_SYS_ADMIN.
func restrict(access Access) error {
	abi := LandlockABI()
	if abi == 0 {
		return nil
	}
	rules := handled(abi)
	// The structure outlives the call and is larger than the size given.
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rules)), size(abi), 0)
	if errno != 0 {
		return fmt.Errorf("make landlock rules: %w", errno)
	}
	ruleset := int(fd)
	defer func() { _ = unix.Close(ruleset) }()
	for _, path := range access.Read {
		if err := allow(ruleset, path, fsRead); err != nil {
			return err
		}
	}
	for _, path := range access.Write {
		if err := allow(ruleset, path, rules.Handled_access_fs); err != nil {
			return err
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("enter landlock rules: %w", errno)
	}
	return nil
}

// allow adds a rule. A path that does not exist needs none.
func allow(ruleset int, path string, rights uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("allow %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("allow %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= fsFile
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(fd)}
	// The kernel reads the 12 packed bytes at the beginning of the structure.
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH,
		uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("allow %s: %w", path, errno)
	}
	return nil
}
