// Package await waits for what the kernel will show at some time and announces
// in no other way: devices, ports, interfaces.
package await

import (
	"context"
	"time"
)

const (
	firstPause   = time.Millisecond
	longestPause = 20 * time.Millisecond
)

// Until calls ready, soon and then less often, until it says yes or fails, no
// longer than ctx and timeout allow.
func Until(ctx context.Context, timeout time.Duration, ready func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for wait := firstPause; ; wait = min(2*wait, longestPause) {
		if yes, err := ready(); yes || err != nil {
			return err
		}
		if err := Pause(ctx, wait); err != nil {
			return err
		}
	}
}

// Pause waits for d, or until ctx ends, whose error it then returns.
func Pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
