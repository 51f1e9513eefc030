package sandbox

import (
	"errors"

	ttrpclog "github.com/containerd/log"
	"github.com/seed-efd44b36/kata/internal/sandbox/guest"
)

// The kinds of errors a caller can tell apart with errors.Is: see package guest.
var (
	ErrNotFound        = guest.ErrNotFound
	ErrExists          = guest.ErrExists
	ErrInvalid         = guest.ErrInvalid
	ErrState           = guest.ErrState
	ErrCommandNotFound = guest.ErrCommandNotFound
	ErrCommandDenied   = guest.ErrCommandDenied
	// ErrDead: the sandbox has ended.
	ErrDead = errors.New("sandbox has ended")
)

// SilenceRPC stops the log of the ttrpc package, which tells every message that
// it did not expect: a guest can send any number of them, and must not fill the
// log and with it the host's memory. Nor has a person any use for it.
func SilenceRPC() error { return ttrpclog.SetLevel("panic") }

// CheckID tells whether s can be the id of a sandbox, container or exec: see
// guest.CheckID.
func CheckID(s string) error { return guest.CheckID(s) }
