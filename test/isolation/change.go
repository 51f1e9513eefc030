package main

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// untried is the value of what is not attempted on the host's own kernel.
const untried = "not tried on the host's kernel"

// setClock sets the clock of a foreign kernel one day ahead, looks at it, and
// sets it back.
func setClock(foreign bool) string {
	now := time.Now().UTC()
	if !foreign {
		return now.Format(time.DateTime)
	}
	start := time.Now()
	ahead := unix.NsecToTimespec(now.Add(24 * time.Hour).UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ahead); err != nil {
		return refused + err.Error()
	}
	seen := time.Now().UTC()
	back := unix.NsecToTimespec(now.Add(time.Since(start)).UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &back); err != nil {
		return "set, but not set back: " + err.Error()
	}
	return seen.Format(time.DateTime) + " (set a day ahead)"
}

// offerModule offers something that is not a module to a foreign kernel: it is
// refused for what it is if modules may be loaded.
func offerModule(foreign bool) string {
	if !foreign {
		return untried
	}
	switch err := unix.InitModule(make([]byte, 64), ""); {
	case errors.Is(err, unix.ENOEXEC):
		return "its kernel reads what it is given"
	case err == nil:
		return "its kernel loads anything"
	default:
		return refused + err.Error()
	}
}

// clock remembers how the host's time of day stands to its monotonic clock.
type clock struct{ offset time.Duration }

func readClock() (clock, error) {
	var wall, mono unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono); err != nil {
		return clock{}, fmt.Errorf("read clock: %w", err)
	}
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &wall); err != nil {
		return clock{}, fmt.Errorf("read clock: %w", err)
	}
	return clock{time.Duration(wall.Nano() - mono.Nano())}, nil
}

// restoreIfMoved sets the host's clock right if it was set since c was read.
func (c clock) restoreIfMoved() (moved bool, err error) {
	now, err := readClock()
	if err != nil {
		return false, err
	}
	// Time daemons move it by much less.
	if (now.offset - c.offset).Abs() < time.Hour {
		return false, nil
	}
	var mono unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono); err != nil {
		return true, fmt.Errorf("read clock: %w", err)
	}
	right := unix.NsecToTimespec(mono.Nano() + c.offset.Nanoseconds())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &right); err != nil {
		return true, fmt.Errorf("the container has moved the host's clock by %v; set it back: %w", now.offset-c.offset, err)
	}
	return true, nil
}
