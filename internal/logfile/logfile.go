// Package logfile keeps the output of containers that run in the background, in
// the format of Docker's json-file logs: one JSON object a line, with the text,
// the stream it came from and the time. When the file has grown to its limit it
// is renamed, and the oldest one is dropped.
//
// kata-proxy writes; `kata logs` reads, possibly at the same time. What a
// container writes can be anything: each line of the file is of bounded length,
// and the reader trusts no line of it.
package logfile

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	// MaxBytes is the size at which a file is rotated.
	MaxBytes = 32 << 20
	// MaxFiles is the number of files that are kept, the current one included.
	MaxFiles = 4
	// maxText is how much of a line is put into one object; the rest is put
	// into the next ones.
	maxText = 16 << 10
)

// Log writes a log file. Its streams can be used at once.
type Log struct {
	path     string
	maxBytes int64
	now      func() time.Time

	mu     sync.Mutex
	file   *os.File // guarded by mu; nil when closed or when a new one could not be opened
	closed bool     // guarded by mu
	size   int64    // guarded by mu
	buf    []byte   // guarded by mu
}

// Create opens a log for writing. What is there already, of an earlier run of
// the same container, is kept.
func Create(path string) (*Log, error) { return create(path, MaxBytes) }

func create(path string, maxBytes int64) (*Log, error) {
	l := &Log{path: path, maxBytes: maxBytes, now: time.Now}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

// open opens the current file. mu is held, or nobody else knows l.
func (l *Log) open() error {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("open log: %w", err)
	}
	l.file, l.size = f, fi.Size()
	if l.size == 0 {
		return nil
	}
	// A writer that was killed may have left half a line.
	var last [1]byte
	if _, err := f.ReadAt(last[:], l.size-1); err == nil && last[0] != '\n' {
		if _, err := f.Write([]byte{'\n'}); err != nil {
			_ = f.Close()
			return fmt.Errorf("open log: %w", err)
		}
		l.size++
	}
	return nil
}

// Close closes the file. Streams are to be closed before.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	if err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}

// Stream returns a writer whose lines are marked with the name, "stdout" or
// "stderr". It is for one goroutine. Closing it writes what is left of a line.
func (l *Log) Stream(name string) io.WriteCloser { return &stream{log: l, name: name} }

type stream struct {
	log  *Log
	name string
	rest []byte // a line without end, shorter than maxText
}

// Write implements io.Writer. An error means that lines were lost; writing can
// go on.
func (s *stream) Write(p []byte) (int, error) {
	s.rest = append(s.rest, p...)
	var texts [][]byte
	todo := s.rest
	for len(todo) > 0 {
		end := bytes.IndexByte(todo[:min(len(todo), maxText)], '\n') + 1
		if end == 0 {
			if len(todo) < maxText {
				break
			}
			end = cut(todo[:maxText])
		}
		texts = append(texts, todo[:end])
		todo = todo[end:]
	}
	err := s.log.write(s.name, texts)
	s.rest = append(s.rest[:0], todo...)
	return len(p), err
}

// cut returns where to cut a text that is too long: not within a character.
func cut(text []byte) int {
	for n := 1; n < utf8.UTFMax; n++ {
		if i := len(text) - n; utf8.RuneStart(text[i]) {
			if !utf8.FullRune(text[i:]) {
				return i
			}
			break
		}
	}
	return len(text)
}

// Close writes the line that has no end.
func (s *stream) Close() error {
	if len(s.rest) == 0 {
		return nil
	}
	err := s.log.write(s.name, [][]byte{s.rest})
	s.rest = nil
	return err
}

// write appends one object for each text.
func (l *Log) write(stream string, texts [][]byte) error {
	if len(texts) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("write log: %w", fs.ErrClosed)
	}
	if l.file == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	now := l.now().UTC().Format(time.RFC3339Nano)
	l.buf = l.buf[:0]
	for _, text := range texts {
		l.buf = appendLine(l.buf, text, stream, now)
		if l.size+int64(len(l.buf)) < l.maxBytes {
			continue
		}
		if err := l.flush(); err != nil {
			return err
		}
		if err := l.rotate(); err != nil {
			return err
		}
	}
	return l.flush()
}

func (l *Log) flush() error {
	n, err := l.file.Write(l.buf)
	l.size += int64(n)
	if err != nil {
		if n > 0 && n < len(l.buf) {
			// A full disk: what was half written is taken back, so that the
			// next line does not continue it.
			cut := bytes.LastIndexByte(l.buf[:n], '\n') + 1
			if terr := l.file.Truncate(l.size - int64(n-cut)); terr == nil {
				l.size -= int64(n - cut)
			}
		}
		err = fmt.Errorf("write log: %w", err)
	}
	l.buf = l.buf[:0]
	return err
}

// rotate begins a new file.
func (l *Log) rotate() error {
	err := l.file.Close()
	l.file = nil
	for n := MaxFiles - 1; n > 0; n-- {
		if rerr := os.Rename(numbered(l.path, n-1), numbered(l.path, n)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	if err := errors.Join(err, l.open()); err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	return nil
}

// numbered is the name of the n-th file; 0 is the current one.
func numbered(path string, n int) string {
	if n == 0 {
		return path
	}
	return path + "." + strconv.Itoa(n)
}

// appendLine encodes one object. A text that is not UTF-8 is there twice: as
// well as JSON can have it, and exactly.
func appendLine(buf, text []byte, stream, now string) []byte {
	buf = append(buf, `{"log":`...)
	buf = appendString(buf, text)
	if !utf8.Valid(text) {
		buf = append(buf, `,"base64":"`...)
		buf = base64.StdEncoding.AppendEncode(buf, text)
		buf = append(buf, '"')
	}
	buf = append(buf, `,"stream":`...)
	buf = appendString(buf, []byte(stream))
	buf = append(buf, `,"time":"`...)
	buf = append(buf, now...)
	return append(buf, "\"}\n"...)
}

// appendString encodes a JSON string. It is the hot part of logging, for which
// encoding/json would need a copy of every line.
func appendString(buf, s []byte) []byte {
	const hex = "0123456789abcdef"
	buf = append(buf, '"')
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			buf = append(buf, '\\', c)
		case c == '\n':
			buf = append(buf, '\\', 'n')
		case c < 0x20 || c == 0x7f:
			buf = append(buf, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			buf = append(buf, c)
		default:
			r, size := utf8.DecodeRune(s[i:])
			buf = utf8.AppendRune(buf, r)
			i += size
			continue
		}
		i++
	}
	return append(buf, '"')
}
