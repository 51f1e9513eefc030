package logfile

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

const (
	// maxLine in bytes is more than one object can have: a text of which
	// every byte is escaped, and again as base64.
	maxLine = 8*maxText + 4096
	// pollInterval is how often a followed file is looked at.
	pollInterval = 100 * time.Millisecond
)

// Options say what of a log is wanted.
type Options struct {
	// Follow goes on until Ended reports that nothing more will be written.
	Follow bool
	// Ended is asked from time to time while following.
	Ended func() bool
	// Timestamps puts the time before each line.
	Timestamps bool
	// Since leaves out what was written before.
	Since time.Time
	// Tail, unless it is nil, leaves out all but so many of the last lines that
	// are there at the beginning.
	Tail *int
}

// Copy writes the text of a log to out and errOut, exactly as the container has
// written it. The error is fs.ErrNotExist when there is no log. Lines of the log
// that cannot be read are left out and their number is in the error.
func Copy(ctx context.Context, path string, out, errOut io.Writer, o Options) error {
	r := &reader{path: path, out: out, errOut: errOut, options: o, holding: o.Tail != nil}
	defer r.close()
	var poll *time.Ticker
	for {
		// Asked before reading: what was written until then is read.
		ended := !o.Follow || o.Ended != nil && o.Ended()
		if err := r.readAll(ctx); err != nil {
			return err
		}
		if err := r.release(); err != nil {
			return err
		}
		if ended {
			break
		}
		if poll == nil {
			poll = time.NewTicker(pollInterval)
			defer poll.Stop()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-poll.C:
		}
	}
	switch {
	case r.info == nil:
		return &fs.PathError{Op: "open log", Path: path, Err: fs.ErrNotExist}
	case r.damaged > 0:
		return fmt.Errorf("log %s: %d lines are damaged and left out", path, r.damaged)
	}
	return nil
}

// reader goes through the files of a log from the oldest to the current one.
type reader struct {
	path        string
	out, errOut io.Writer
	options     Options

	file    *os.File
	info    fs.FileInfo   // of file, nil before the first
	lines   *bufio.Reader // of file
	partial []byte        // of a line that is not complete yet
	skip    bool          // the line is too long, wait for its end
	damaged int
	// middle tells that the next text continues a line, by stream.
	middle map[string]bool
	// holding tells that what is read is held back, to find the last lines.
	holding bool
	held    []logLine
	ends    int // of lines, among what is held
}

func (r *reader) close() {
	if r.file != nil {
		_ = r.file.Close()
		r.file = nil
	}
}

// readAll reads until there is nothing more at the moment.
func (r *reader) readAll(ctx context.Context) error {
	for {
		if r.file != nil {
			if err := r.readFile(ctx); err != nil {
				return err
			}
		}
		more, err := r.advance(ctx)
		if err != nil || !more {
			return err
		}
	}
}

// advance opens the file that comes after the one that is read. The writer may
// be renaming files meanwhile, so they are told apart by what they are.
func (r *reader) advance(ctx context.Context) (bool, error) {
	next := "" // the oldest that is newer
	var info fs.FileInfo
	for n := range MaxFiles {
		fi, err := os.Stat(numbered(r.path, n))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("read log: %w", err)
		}
		if r.info != nil && os.SameFile(fi, r.info) {
			break
		}
		info, next = fi, numbered(r.path, n)
	}
	if info == nil {
		return false, nil
	}
	// What was appended between the end of the file and its rotation.
	if r.file != nil {
		if err := r.readFile(ctx); err != nil {
			return false, err
		}
		r.finish()
	}
	f, err := os.Open(next)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // dropped just now: look again
	}
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return false, fmt.Errorf("read log: %w", err)
	}
	if !os.SameFile(fi, info) {
		_ = f.Close()
		return true, nil // renamed just now
	}
	r.close()
	r.file, r.info, r.lines = f, fi, bufio.NewReaderSize(f, 64<<10)
	return true, nil
}

// finish counts a line that a rotated file breaks off in.
func (r *reader) finish() {
	if len(r.partial) > 0 || r.skip {
		r.damaged++
	}
	r.partial, r.skip = nil, false
}

// readFile reads complete lines until the end of the file.
func (r *reader) readFile(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		part, err := r.lines.ReadSlice('\n')
		if !r.skip {
			r.partial = append(r.partial, part...)
		}
		if len(r.partial) > maxLine {
			r.partial, r.skip = nil, true
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read log: %w", err)
		}
		line, skipped := r.partial, r.skip
		r.partial, r.skip = r.partial[:0], false
		if len(line) <= 1 && !skipped {
			continue // the mend of a broken line
		}
		var l logLine
		if skipped || json.Unmarshal(line, &l) != nil {
			r.damaged++
			continue
		}
		if err := r.print(l); err != nil {
			return err
		}
	}
}

// logLine is one object of the file.
type logLine struct {
	Log    string    `json:"log"`
	Base64 []byte    `json:"base64"`
	Stream string    `json:"stream"`
	Time   time.Time `json:"time"`
}

// text is what the container has written.
func (l logLine) text() []byte {
	if len(l.Base64) > 0 {
		return l.Base64
	}
	return []byte(l.Log)
}

// ends tells whether it ends a line.
func (l logLine) ends() bool { return bytes.HasSuffix(l.text(), []byte("\n")) }

// hold keeps a text, and drops those before the last lines.
func (r *reader) hold(l logLine) {
	r.held = append(r.held, l)
	if l.ends() {
		r.ends++
	}
	for tail := *r.options.Tail; r.ends > tail || tail == 0 && len(r.held) > 0; {
		if r.held[0].ends() {
			r.ends--
		}
		r.held = r.held[1:]
	}
}

// release prints what was held back; from now on nothing is.
func (r *reader) release() error {
	r.holding = false
	for _, l := range r.held {
		if err := r.print(l); err != nil {
			return err
		}
	}
	r.held = nil
	return nil
}

func (r *reader) print(l logLine) error {
	if l.Time.Before(r.options.Since) {
		return nil
	}
	if r.holding {
		r.hold(l)
		return nil
	}
	text := l.text()
	w := r.out
	if l.Stream == "stderr" {
		w = r.errOut
	}
	if r.options.Timestamps && len(text) > 0 {
		if r.middle == nil {
			r.middle = make(map[string]bool, 2)
		}
		name := "stdout"
		if l.Stream == "stderr" {
			name = l.Stream
		}
		if !r.middle[name] {
			text = append([]byte(l.Time.UTC().Format(time.RFC3339Nano)+" "), text...)
		}
		r.middle[name] = text[len(text)-1] != '\n'
	}
	if _, err := w.Write(text); err != nil {
		return fmt.Errorf("print log: %w", err)
	}
	return nil
}
