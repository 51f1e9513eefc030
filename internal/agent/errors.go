package agent

import (
	"context"
	"errors"

	"github.com/seed-efd44b36/kata/internal/agent/entropy"
	"github.com/seed-efd44b36/kata/internal/agent/jail"
	"github.com/seed-efd44b36/kata/internal/agent/mirror"
	"github.com/seed-efd44b36/kata/internal/agent/network"
	"github.com/seed-efd44b36/kata/internal/agent/pod"
	"github.com/seed-efd44b36/kata/internal/agent/storage"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Kinds of errors, for fail.
var (
	errInvalid = errors.New("invalid argument")
	errState   = errors.New("wrong state")
	errExists  = errors.New("exists already")
	errMissing = errors.New("not found")
)

// fail turns an error into one that the host understands. What it says is all
// that the host will know.
func fail(err error) error {
	if err == nil {
		return nil
	}
	code := codes.Internal
	for _, k := range []struct {
		kind error
		code codes.Code
	}{
		{errMissing, codes.NotFound},
		{errExists, codes.AlreadyExists},
		{errState, codes.FailedPrecondition},
		{errInvalid, codes.InvalidArgument},
		{entropy.ErrInvalid, codes.InvalidArgument},
		{mirror.ErrInvalid, codes.InvalidArgument},
		{network.ErrInvalid, codes.InvalidArgument},
		{pod.ErrInvalid, codes.InvalidArgument},
		{storage.ErrInvalid, codes.InvalidArgument},
		{jail.ErrUnsupported, codes.InvalidArgument},
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
	} {
		if errors.Is(err, k.kind) {
			code = k.code
			break
		}
	}
	return status.Error(code, err.Error())
}

// failStart is fail for calls that make or start a process, for which "not
// found" and "permission denied" mean its program and nothing else.
func failStart(err error) error {
	switch {
	case errors.Is(err, jail.ErrNotFound):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, jail.ErrPermission):
		return status.Error(codes.PermissionDenied, err.Error())
	case errors.Is(err, errMissing):
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	return fail(err)
}
