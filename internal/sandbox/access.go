package sandbox

import (
	"context"
	"fmt"

	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/tail"
)

// Console is the tail of the guest's console, also after the guest's end. It is
// raw: quote it before it is printed.
func (s *Sandbox) Console() (*tail.Buffer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.booted {
		return nil, fmt.Errorf("console of sandbox %s: it has not booted: %w", s.id, ErrState)
	}
	return s.machine.Console(), nil
}

// DialPort connects to a TCP port on the loopback of the guest; see guest.DialPort.
func (s *Sandbox) DialPort(ctx context.Context, port uint16) (link.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	st, err := s.guest.DialPort(ctx, port)
	return st, s.orDead(err)
}
