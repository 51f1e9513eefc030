package await

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestUntil(t *testing.T) {
	failure := errors.New("broken")
	for _, tt := range []struct {
		name    string
		timeout time.Duration
		ready   func(call int) (bool, error)
		want    error
	}{
		{"at once", 0, func(int) (bool, error) { return true, nil }, nil},
		{"later", time.Minute, func(call int) (bool, error) { return call == 4, nil }, nil},
		{"failure", time.Minute, func(call int) (bool, error) { return false, failure }, failure},
		{"never", 5 * time.Millisecond, func(int) (bool, error) { return false, nil }, context.DeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			calls := 0
			err := Until(t.Context(), tt.timeout, func() (bool, error) {
				calls++
				return tt.ready(calls)
			})
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v after %d calls", err, calls)
			}
		})
	}
}
