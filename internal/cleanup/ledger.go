package cleanup

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Kind says what a Record names.
type Kind string

// The kinds of resources.
const (
	// KindProcess: Name is an element of the process's argument vector that no
	// other sandbox's processes have, as a rule the sandbox's id; Extra
	// ExtraExe is its executable, or without it any VMM and its file server
	// is meant. The pid is not known before it exists.
	KindProcess Kind = "process"
	// KindMount: Name is the mount point.
	KindMount Kind = "mount"
	// KindNetns: Name is the file a network namespace is mounted on.
	KindNetns Kind = "netns"
	// KindCgroup: Name is the path of a cgroup below the root of each hierarchy.
	KindCgroup Kind = "cgroup"
	// KindDir: Name is a directory, removed with all that is in it.
	KindDir Kind = "dir"
	// KindFile: Name is a file, or anything else that can be unlinked.
	KindFile Kind = "file"
	// KindCNI: Name is the CNI network, Extra ExtraNetns the namespace it is
	// in. Released by package cni.
	KindCNI Kind = "cni"
)

// The keys of Record.Extra.
const (
	// ExtraExe is an executable: an absolute path or, without a slash, the
	// last element of one.
	ExtraExe = "exe"
	// ExtraNetns is the path of a network namespace.
	ExtraNetns = "netns"
)

// Record names one resource on the host.
type Record struct {
	Kind  Kind              `json:"kind"`
	Name  string            `json:"name"`
	Extra map[string]string `json:"extra,omitempty"`
}

func (r Record) String() string { return string(r.Kind) + " " + r.Name }

// maxLedger and maxLine bound what is read: a ledger of a pod with hundreds
// of containers is below 100 KiB.
const (
	maxLedger = 16 << 20
	maxLine   = 64 << 10
)

// line is one line of the ledger's file.
type line struct {
	Op string `json:"op"` // opAdd or opDone
	Record
}

const (
	opAdd  = "add"
	opDone = "done"
)

// Ledger is the list of what a sandbox has taken from the host, kept in a file
// of JSON lines that is only ever appended to. It has one writer, the owner of
// the sandbox. It is safe for concurrent use.
type Ledger struct {
	mu   sync.Mutex
	f    *os.File
	open []Record // guarded by mu; oldest first
}

// Open opens the ledger at path and makes an empty one if there is none.
// The caller closes it.
func Open(path string) (*Ledger, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	records, err := readLedger(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open ledger %s: %w", path, err)
	}
	// A line that a crash cut short must not swallow the next one.
	if err := endLine(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("open ledger %s: %w", path, err)
	}
	return &Ledger{f: f, open: records}, nil
}

func endLine(f *os.File) error {
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	last := make([]byte, 1)
	if _, err := f.ReadAt(last, st.Size()-1); err != nil || last[0] == '\n' {
		return err
	}
	_, err = f.Write([]byte{'\n'})
	return err
}

// Add writes that the resource is about to be made. Only after it has returned
// may the resource be made. Adding what is there already does nothing.
func (l *Ledger) Add(r Record) error {
	if r.Kind == "" || r.Name == "" || strings.ContainsRune(r.Name, 0) {
		return fmt.Errorf("add %q to ledger: a record needs a kind and a name", r)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if indexOf(l.open, r) >= 0 {
		return nil
	}
	if err := l.write(line{opAdd, r}); err != nil {
		return fmt.Errorf("add %s to ledger: %w", r, err)
	}
	l.open = append(l.open, r)
	return nil
}

// Done writes that the resource is gone. A record that is not in the ledger is
// no error.
func (l *Ledger) Done(r Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := indexOf(l.open, r)
	if i < 0 {
		return nil
	}
	if err := l.write(line{opDone, Record{Kind: r.Kind, Name: r.Name}}); err != nil {
		return fmt.Errorf("strike %s from ledger: %w", r, err)
	}
	l.open = slices.Delete(l.open, i, i+1)
	return nil
}

// write appends one line by one write, which a killed process has either done
// or not. It is not synced: a ledger need not outlive the kernel whose
// resources it lists.
func (l *Ledger) write(ln line) error {
	b, err := json.Marshal(ln)
	if err != nil {
		return err
	}
	if len(b) >= maxLine {
		return fmt.Errorf("record of %d bytes: at most %d are allowed", len(b), maxLine-1)
	}
	_, err = l.f.Write(append(b, '\n'))
	return err
}

// Records returns what is in the ledger and not done, oldest first.
func (l *Ledger) Records() []Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.open)
}

// Close closes the file. The ledger stays.
func (l *Ledger) Close() error { return l.f.Close() }

// ReadLedger returns what the ledger at path holds, oldest first; no file is
// an empty ledger. Lines that cannot be understood are told in the error,
// which comes beside the records of all others.
func ReadLedger(path string) ([]Record, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read ledger: %w", err)
	}
	defer f.Close()
	records, err := readLedger(f)
	if err != nil {
		return records, fmt.Errorf("read ledger %s: %w", path, err)
	}
	return records, nil
}

// readLedger decodes the lines of a ledger. What follows the last newline was
// cut short by a crash and is left out: its resource had not been made, since
// Add had not returned.
func readLedger(r io.Reader) ([]Record, error) {
	var (
		records []Record
		errs    []error
	)
	br := bufio.NewReaderSize(io.LimitReader(r, maxLedger), maxLine)
	for n := 1; ; n++ {
		text, err := br.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return records, errors.Join(errs...)
		case errors.Is(err, bufio.ErrBufferFull):
			// Neither cut short nor ours; what follows cannot be trusted.
			return records, errors.Join(append(errs, fmt.Errorf("line %d: longer than %d bytes", n, maxLine))...)
		case err != nil:
			return records, errors.Join(append(errs, err)...)
		}
		if len(bytes.TrimSpace(text)) == 0 {
			continue
		}
		var ln line
		if err := json.Unmarshal(text, &ln); err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
			continue
		}
		i := indexOf(records, ln.Record)
		switch {
		case ln.Kind == "" || ln.Name == "":
			errs = append(errs, fmt.Errorf("line %d: a record needs a kind and a name", n))
		case ln.Op == opAdd && i < 0:
			records = append(records, ln.Record)
		case ln.Op == opDone && i >= 0:
			records = slices.Delete(records, i, i+1)
		case ln.Op != opAdd && ln.Op != opDone:
			errs = append(errs, fmt.Errorf("line %d: unknown operation %q", n, ln.Op))
		}
	}
}

// indexOf finds the record of the same kind and name. The newest is the
// likeliest to be asked for.
func indexOf(records []Record, r Record) int {
	for i, o := range slices.Backward(records) {
		if o.Kind == r.Kind && o.Name == r.Name {
			return i
		}
	}
	return -1
}
