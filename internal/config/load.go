package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// File is read when no other file is asked for.
const File = "/etc/kata-containers/configuration.toml"

// EnvFile is the environment variable that names another file.
const EnvFile = "KATA_CONF_FILE"

// FromDefault is the origin of a value that no file sets.
const FromDefault = "default"

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// Loaded is a valid configuration and where it came from.
type Loaded struct {
	Config Config
	// Files were read, in this order: later ones win.
	Files []string
	// Origin has, for each key ("runtime.state_dir"), FromDefault or FILE:LINE.
	Origin map[string]string
}

// Error is one thing that is wrong with a configuration.
type Error struct {
	// Where is FILE or FILE:LINE, empty for a value that is not from a file.
	Where string
	// Key is the full name, as in "runtime.state_dir"; empty for what
	// concerns a whole file.
	Key string
	// Text says what is wrong and what would be right.
	Text string
}

// Error returns the problem as one line.
func (p *Error) Error() string {
	var parts []string
	for _, s := range []string{p.Where, p.Key, p.Text} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

// Load reads the file at path and the drop-ins *.toml of the directory config.d
// beside it, in alphabetical order, over the defaults. With an empty path it
// takes EnvFile's value, then File, and only the last may be absent. The error
// joins every Error that was found, in files and values.
func Load(path string) (*Loaded, error) {
	optional, fromEnv := false, false
	if path == "" {
		path = os.Getenv(EnvFile)
		fromEnv = path != ""
	}
	if path == "" {
		path, optional = File, true
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}

	l := &Loaded{Config: Default(), Origin: make(map[string]string)}
	for _, s := range settings(&l.Config) {
		l.Origin[s.key] = FromDefault
	}
	problems := l.read(path, optional)
	if fromEnv && len(l.Files) == 0 { // it could not be read
		for _, p := range problems {
			p.Text += " (the environment variable " + EnvFile + " names this file)"
		}
	}
	dropInDir := filepath.Join(filepath.Dir(path), "config.d")
	dropIns, err := listDropIns(dropInDir)
	if err != nil {
		problems = append(problems, fileProblem(dropInDir, err))
	}
	for _, d := range dropIns {
		problems = append(problems, l.read(d, false)...)
	}
	for _, p := range l.Config.problems() {
		if o := l.Origin[p.Key]; o != FromDefault {
			p.Where = o
		}
		problems = append(problems, p)
	}
	l.sort(problems)
	if len(problems) > 0 {
		errs := make([]error, len(problems))
		for i, p := range problems {
			errs[i] = p
		}
		return nil, errors.Join(errs...)
	}
	return l, nil
}

// sort puts problems into the order in which a person meets them: of files, and
// of lines in each. What is of no file comes last.
func (l *Loaded) sort(problems []*Error) {
	place := func(p *Error) (file, line int) {
		for i, f := range l.Files {
			if rest, ok := strings.CutPrefix(p.Where, f); ok && (rest == "" || rest[0] == ':') {
				line, _ = strconv.Atoi(strings.TrimPrefix(rest, ":"))
				return i, line
			}
		}
		return len(l.Files), 0
	}
	slices.SortStableFunc(problems, func(a, b *Error) int {
		fileA, lineA := place(a)
		fileB, lineB := place(b)
		return cmp.Or(cmp.Compare(fileA, fileB), cmp.Compare(lineA, lineB))
	})
}

// read merges one file into l.
func (l *Loaded) read(path string, optional bool) []*Error {
	data, err := readTrusted(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return []*Error{fileProblem(path, err)}
	}
	l.Files = append(l.Files, path)
	return decode(data, path, &l.Config, l.Origin)
}

// readTrusted returns what is in the file, which nobody but root and ourselves
// may be able to write: it names programs that are run as root.
func readTrusted(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if st.IsDir() {
		return nil, errors.New("is a directory; name the file in it")
	}
	if err := checkOwner(f); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("is larger than %d KiB, so it is not a configuration", maxFile>>10)
	}
	return data, nil
}

func checkOwner(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others may write to it (mode %04o), and it names programs that run as root; run: chmod go-w %s",
			info.Mode().Perm(), f.Name())
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("belongs to uid %d, and it names programs that run as root; run: chown root %s", st.Uid, f.Name())
	}
	return nil
}

// listDropIns returns the drop-ins in dir, none when it does not exist.
func listDropIns(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := checkOwner(d); err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var paths []string
	for _, n := range names {
		if strings.HasSuffix(n, ".toml") && !strings.HasPrefix(n, ".") {
			paths = append(paths, filepath.Join(dir, n))
		}
	}
	return paths, nil
}

// fileProblem drops the path from err, as it is in Where.
func fileProblem(path string, err error) *Error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = fmt.Errorf("%s: %w", pe.Op, pe.Err)
	}
	return &Error{Where: path, Text: err.Error()}
}
