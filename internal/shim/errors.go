package shim

import (
	"context"
	"errors"

	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/spec"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// refuse makes an error what containerd understands: a status, whose code it
// acts on (NotFound above all) and whose text it shows.
func refuse(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Unknown
	switch {
	case errors.Is(err, sandbox.ErrNotFound):
		code = codes.NotFound
	case errors.Is(err, sandbox.ErrExists):
		code = codes.AlreadyExists
	case errors.Is(err, sandbox.ErrInvalid), errors.Is(err, spec.ErrInvalid):
		code = codes.InvalidArgument
	case errors.Is(err, sandbox.ErrState):
		code = codes.FailedPrecondition
	case errors.Is(err, spec.ErrUnsupported), errors.Is(err, errors.ErrUnsupported):
		code = codes.Unimplemented
	case errors.Is(err, sandbox.ErrDead):
		code = codes.Unavailable
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	return status.Error(code, err.Error())
}

// refuseCreate is refuse for Create: at Unimplemented containerd asks again in
// an older version of the API, and would show what that came to.
func refuseCreate(err error) error {
	err = refuse(err)
	if s, ok := status.FromError(err); ok && s.Code() == codes.Unimplemented {
		return status.Error(codes.InvalidArgument, s.Message())
	}
	return err
}
