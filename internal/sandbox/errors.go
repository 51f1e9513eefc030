package sandbox

import (
	"errors"

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

// CheckID tells whether s can be the id of a sandbox, container or exec: see
// guest.CheckID.
func CheckID(s string) error { return guest.CheckID(s) }
