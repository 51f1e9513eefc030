package harness

import (
	"bytes"
	"sync"
	"testing"
	"time"
)

// Buffer collects the output of a program that still runs.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String is what has been written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Poll waits until something has happened, and gives up after a minute.
func Poll(t testing.TB, what string, done func() bool) {
	t.Helper()
	PollFor(t, time.Minute, what, done)
}

// PollFor is Poll for what may take longer.
func PollFor(t testing.TB, patience time.Duration, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("in %v it did not happen that %s", patience, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
