package supervise

import (
	"errors"
	"fmt"
	"strings"

	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// confine takes from the calling thread what its child must not have: every
// capability that is not in keep (nil keeps all) and the right to gain
// privileges by running a set-uid program.
func confine(keep []string) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if keep == nil {
		return nil
	}
	kept := make(map[string]bool, len(keep))
	for _, name := range keep {
		kept[strings.ToLower(strings.TrimPrefix(name, "CAP_"))] = true
	}
	own, err := capability.NewPid2(0)
	if err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	if err := own.Load(); err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	supported, err := capability.ListSupported()
	if err != nil {
		return fmt.Errorf("list the kernel's capabilities: %w", err)
	}
	for _, c := range supported {
		if kept[c.String()] || !own.Get(capability.BOUNDING, c) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %s from the bounding set: %w", c, err)
		}
	}
	// What root gets at exec is its bounding set plus its inheritable set, so
	// the latter has to go as well, and with it the ambient set.
	own.Clear(capability.INHERITABLE)
	if err := own.Apply(capability.CAPS); err != nil {
		return fmt.Errorf("clear inheritable capabilities: %w", err)
	}
	err = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	return nil
}
