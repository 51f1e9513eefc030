package sandbox

import (
	"context"
	"errors"
)

// OutOfMemory calls f with each container in which the guest's kernel has killed a
// process for want of memory, until the sandbox dies or ctx ends. It is the
// guest's word, but for the container, which is one of the sandbox's.
func (s *Sandbox) OutOfMemory(ctx context.Context, f func(container string)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	err := s.orDead(s.guest.OutOfMemory(ctx, func(container string) {
		if _, err := s.Container(container); err == nil {
			f(container)
		}
	}))
	if ctx.Err() != nil || errors.Is(err, ErrDead) {
		return nil
	}
	return err
}
