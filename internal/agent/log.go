package agent

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"sync"

	"github.com/seed-efd44b36/kata/internal/link"
	"golang.org/x/sys/unix"
)

const (
	// maxKmsg is the most that the kernel takes in one line.
	maxKmsg = 900
	// logBacklog is how many lines may wait for a slow reader.
	logBacklog = 256
)

// newLogger returns a logger that writes text to the kernel's log and JSON to
// every stream of the fan.
func newLogger(kmsg io.Writer, level slog.Level) (*slog.Logger, *logFan) {
	fan := &logFan{}
	return slog.New(slog.NewMultiHandler(
		slog.NewTextHandler(kmsgWriter{kmsg}, &slog.HandlerOptions{Level: level, ReplaceAttr: withoutTime}),
		slog.NewJSONHandler(fan, &slog.HandlerOptions{Level: level}),
	)), fan
}

// withoutTime drops the time: the kernel has its own.
func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// openKmsg opens the kernel's log. Without one, words are lost.
func openKmsg() io.Writer {
	fd, err := unix.Open("/dev/kmsg", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return io.Discard
	}
	return os.NewFile(uintptr(fd), "/dev/kmsg")
}

// kmsgWriter gives each line the kernel's mark for its level, by which `quiet`
// decides what the console shows.
type kmsgWriter struct{ w io.Writer }

func (k kmsgWriter) Write(p []byte) (int, error) {
	mark := "<6>" // info
	switch {
	case bytes.HasPrefix(p, []byte("level=ERROR")):
		mark = "<3>"
	case bytes.HasPrefix(p, []byte("level=WARN")):
		mark = "<4>"
	}
	line := append([]byte(mark+"kata-agent: "), p...)
	if len(line) > maxKmsg {
		line = append(line[:maxKmsg], '\n')
	}
	if _, err := k.w.Write(line); err != nil {
		return 0, err
	}
	return len(p), nil
}

// logFan gives every line that is written to it to each stream of kind log. A
// stream that is too slow misses lines.
type logFan struct {
	mu      sync.Mutex
	readers map[chan []byte]struct{} // guarded by mu
}

// Write implements io.Writer.
func (f *logFan) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.readers) == 0 {
		return len(p), nil
	}
	line := bytes.Clone(p)
	for r := range f.readers {
		select {
		case r <- line:
		default:
		}
	}
	return len(p), nil
}

// serve writes lines to the stream until it ends, and closes it.
func (f *logFan) serve(s link.Stream) {
	lines := make(chan []byte, logBacklog)
	f.mu.Lock()
	if f.readers == nil {
		f.readers = make(map[chan []byte]struct{})
	}
	f.readers[lines] = struct{}{}
	f.mu.Unlock()
	ended := make(chan struct{})
	defer func() {
		f.mu.Lock()
		delete(f.readers, lines)
		f.mu.Unlock()
		_ = s.Close()
		<-ended
	}()
	go func() { // ends with the stream, which is closed above
		defer close(ended)
		_, _ = io.Copy(io.Discard, s)
	}()
	for {
		select {
		case line := <-lines:
			if _, err := s.Write(line); err != nil {
				return
			}
		case <-ended:
			return
		}
	}
}
