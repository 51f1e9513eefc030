package sandbox

import (
	"context"
	"errors"
	"fmt"

	ttrpclog "github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/seed-efd44b36/kata/internal/printable"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The kinds of errors a caller can tell apart with errors.Is.
var (
	// ErrNotFound: no such container or process.
	ErrNotFound = errors.New("not found")
	// ErrExists: the id is taken.
	ErrExists = errors.New("already exists")
	// ErrInvalid: the request itself is wrong.
	ErrInvalid = errors.New("invalid argument")
	// ErrState: not possible in the present state.
	ErrState = errors.New("wrong state")
	// ErrDead: the sandbox has ended.
	ErrDead = errors.New("sandbox has ended")
	// ErrCommandNotFound: the command does not exist in the container.
	ErrCommandNotFound = errors.New("command not found")
	// ErrCommandDenied: the command exists but cannot be executed.
	ErrCommandDenied = errors.New("command cannot be executed")
)

var (
	// errNoAnswer: a call to the guest's agent took too long.
	errNoAnswer = errors.New("the guest's agent did not answer in time")
	// errLinkLost: the agent, or whatever plays its part, has hung up.
	errLinkLost = errors.New("the link to the guest's agent was lost")
)

// SilenceRPC stops the log of the ttrpc package, which tells every message that
// it did not expect: a guest can send any number of them, and must not fill the
// log and with it the host's memory. Nor has a person any use for it.
func SilenceRPC() error { return ttrpclog.SetLevel("panic") }

// guestError is what the guest answered: its text is the guest's, so it is
// cut to a sane length and freed of control characters before anyone prints it.
type guestError struct {
	kind error
	text string
}

func (e *guestError) Error() string { return e.text }
func (e *guestError) Unwrap() error { return e.kind }

// fromGuest turns the error of a call to the agent into one of ours. starting
// tells that the call was to run a command, where "not found" means the command.
func fromGuest(err error, starting bool) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	switch {
	case ok:
	case errors.Is(err, context.DeadlineExceeded):
		return errNoAnswer // says it better
	case errors.Is(err, ttrpc.ErrClosed) || errors.Is(err, context.Canceled):
		return err // the consequence of another failure, see orDead
	default:
		return fmt.Errorf("the guest's agent does not keep to the protocol: %w", err)
	}
	ge := &guestError{text: printable.Text(st.Message(), 1024)}
	switch {
	case st.Code() == codes.NotFound && starting:
		ge.kind = ErrCommandNotFound
	case st.Code() == codes.PermissionDenied && starting:
		ge.kind = ErrCommandDenied
	case st.Code() == codes.NotFound:
		ge.kind = ErrNotFound
	case st.Code() == codes.AlreadyExists:
		ge.kind = ErrExists
	case st.Code() == codes.InvalidArgument:
		ge.kind = ErrInvalid
	case st.Code() == codes.FailedPrecondition:
		ge.kind = ErrState
	case st.Code() == codes.Internal && ge.text != "":
		return errors.New(ge.text) // the code says nothing that the text does not
	default:
		return fmt.Errorf("%s (%s)", ge.text, st.Code())
	}
	return ge
}
