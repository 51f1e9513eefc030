package guest

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
	// ErrCommandNotFound: the command does not exist in the container.
	ErrCommandNotFound = errors.New("command not found")
	// ErrCommandDenied: the command exists but cannot be executed.
	ErrCommandDenied = errors.New("command cannot be executed")
	// ErrNoAnswer: a call to the guest's agent took too long.
	ErrNoAnswer = errors.New("the guest's agent did not answer in time")
	// ErrLost: the agent, or whatever plays its part, has hung up.
	ErrLost = errors.New("the link to the guest's agent was lost")
)

// AnswerError is what the guest answered: its text is the guest's, so it is
// cut to a sane length and freed of control characters before anyone prints it.
type AnswerError struct {
	kind error
	text string
}

// Error is what the guest says.
func (a *AnswerError) Error() string { return a.text }

// Unwrap is the kind.
func (a *AnswerError) Unwrap() error { return a.kind }

// Error turns the error of a call to the agent into one of ours. starting
// tells that the call was to run a command, where "not found" means the command.
func Error(err error, starting bool) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	switch {
	case ok:
	case errors.Is(err, context.DeadlineExceeded):
		return ErrNoAnswer // says it better
	case errors.Is(err, ttrpc.ErrClosed) || errors.Is(err, context.Canceled):
		return err // the consequence of another failure, see orDead
	default:
		return fmt.Errorf("the guest's agent does not keep to the protocol: %w", err)
	}
	a := &AnswerError{text: printable.Text(st.Message(), 1024)}
	switch {
	case st.Code() == codes.NotFound && starting:
		a.kind = ErrCommandNotFound
	case st.Code() == codes.PermissionDenied && starting:
		a.kind = ErrCommandDenied
	case st.Code() == codes.NotFound:
		a.kind = ErrNotFound
	case st.Code() == codes.AlreadyExists:
		a.kind = ErrExists
	case st.Code() == codes.InvalidArgument:
		a.kind = ErrInvalid
	case st.Code() == codes.FailedPrecondition:
		a.kind = ErrState
	case st.Code() == codes.Internal && a.text != "":
		return errors.New(a.text) // the code says nothing that the text does not
	default:
		return fmt.Errorf("%s (%s)", a.text, st.Code())
	}
	return a
}

// ExitCode is that of a process that never ran because of err, as Docker has it.
func ExitCode(err error) uint32 {
	switch {
	case errors.Is(err, ErrCommandNotFound):
		return 127
	case errors.Is(err, ErrCommandDenied):
		return 126
	}
	return 125
}

// SilenceRPC stops the log of the ttrpc package, which tells every message that
// it did not expect: a guest can send any number of them, and must not fill the
// log and with it the host's memory. Nor has a person any use for it.
func SilenceRPC() error { return ttrpclog.SetLevel("panic") }
