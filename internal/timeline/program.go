package timeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// variable is the environment variable by which a program gives its steps to the
// next one.
const variable = "KATA_TIMELINE"

// ticks are the units of a process's age, per second, on every architecture.
const ticks = 100

// Program is the time line of a start that has come to this program, which is one
// step, from the process's first instruction on. It comes after what the programs
// before it have recorded, and is called early and once.
func Program(name string) *Start {
	now := time.Now()
	text := os.Getenv(variable)
	_ = os.Unsetenv(variable) // what we start gets ours
	s := &Start{}
	if steps, err := decode(text, now); err == nil {
		s.steps = steps
	}
	begun, err := processStart(now)
	if err != nil {
		begun = now
	}
	// The kernel tells hundredths of a second: not before we were started.
	for _, st := range s.steps {
		if !st.whole && st.end.After(begun) && st.end.Before(now) {
			begun = st.end
		}
	}
	s.steps = append(s.steps, step{name: name, parent: -1, start: begun, whole: true})
	s.top = len(s.steps)
	s.steps = append(s.steps, step{name: "program start", parent: s.top - 1, start: begun, end: now})
	return s
}

// Environ is the environment for the next program, which is about to be started
// and goes on with the time line of the context: no entry if there is none.
func Environ(ctx context.Context) []string {
	at, ok := ctx.Value(placeKey{}).(place)
	if !ok {
		return nil
	}
	text, err := encode(at.start.copied(), time.Now())
	if err != nil {
		return nil
	}
	return []string{variable + "=" + text}
}

// record is a step as the next program gets it, with times since 1970 in ns.
type record struct {
	Name   string `json:"name"`
	Parent int    `json:"parent"`
	Start  int64  `json:"start"`
	End    int64  `json:"end,omitempty"`
	Whole  bool   `json:"whole,omitempty"`
	Guest  bool   `json:"guest,omitempty"`
}

// encode ends what has not ended: it goes on in the next program, if at all.
func encode(steps []step, now time.Time) (string, error) {
	records := make([]record, 0, len(steps))
	for _, st := range steps {
		r := record{Name: st.name, Parent: st.parent, Start: st.start.UnixNano(), Whole: st.whole, Guest: st.guest}
		switch {
		case st.whole:
		case st.end.IsZero():
			r.End = now.UnixNano()
		default:
			r.End = st.end.UnixNano()
		}
		records = append(records, r)
	}
	b, err := json.Marshal(records)
	return string(b), err
}

// decode gives the times a place on the clock that cannot be set, as now has one.
func decode(text string, now time.Time) ([]step, error) {
	at := func(ns int64) time.Time { return now.Add(time.Unix(0, ns).Sub(now)) }

	var records []record
	if err := json.Unmarshal([]byte(text), &records); err != nil {
		return nil, fmt.Errorf("decode time line: %w", err)
	}
	// Half of the room is for this program.
	if len(records) > maxSteps/2 {
		return nil, fmt.Errorf("decode time line: it has %d steps", len(records))
	}
	steps := make([]step, 0, len(records))
	for n, r := range records {
		if r.Parent < -1 || r.Parent >= n {
			return nil, fmt.Errorf("decode time line: step %d is part of %d", n, r.Parent)
		}
		st := step{name: r.Name, parent: r.Parent, start: at(r.Start), whole: r.Whole, guest: r.Guest}
		if !r.Whole {
			st.end = at(r.End)
		}
		steps = append(steps, st)
	}
	return steps, nil
}

// processStart tells when this process began, to a hundredth of a second.
func processStart(now time.Time) (time.Time, error) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return time.Time{}, err
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}, err
	}
	since, err := startTicks(stat)
	if err != nil {
		return time.Time{}, err
	}
	age := time.Duration(up.Nano()) - time.Duration(since)*(time.Second/ticks)
	if age < 0 {
		return time.Time{}, errors.New("the process is younger than now")
	}
	return now.Add(-age), nil
}

// startTicks is when a process began, of its /proc/PID/stat. Its name, which is
// in parentheses, may have any character.
func startTicks(stat []byte) (uint64, error) {
	const field = 22 // the first after the name is 3
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) <= field-3 {
		return 0, errors.New("/proc/self/stat is short")
	}
	return strconv.ParseUint(string(fields[field-3]), 10, 64)
}
