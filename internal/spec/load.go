// Package spec reads the OCI runtime spec of a container (config.json) and
// divides it between the host and the guest: what the guest's agent is to do,
// what the host does, and what is refused. It changes nothing on the machine
// and reads no file but config.json.
//
// The rule for every field: it is enforced, or the container is refused with an
// error that names the field, or (labels of security modules that the guest
// does not have) a warning says what is not done. A test walks all fields of
// the spec and holds each to its class.
//
// A spec comes from root's own tools but carries what users wrote, so all its
// problems are told at once and in terms of its fields.
package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The kinds of problems with a spec, for errors.Is.
var (
	// ErrInvalid: the spec contradicts the OCI runtime specification.
	ErrInvalid = errors.New("not valid")
	// ErrUnsupported: the spec asks for what a container in a virtual machine
	// cannot be given.
	ErrUnsupported = errors.New("not supported")
)

// maxConfig bounds config.json. The largest that engines write, with a full
// seccomp profile and all devices of a host, are below 200 KiB.
const maxConfig = 16 << 20

// Load reads config.json of a bundle. Fields that the OCI runtime spec does
// not know are ignored, as it demands. Load finds wrong types and syntax;
// whether the contents make sense is Translate's to say.
func Load(bundle string) (*specs.Spec, error) {
	path := filepath.Join(bundle, "config.json")
	// Nonblocking, lest a pipe in its place hang us.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("load spec: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("load spec: %s is not a regular file: %w", path, ErrInvalid), err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("load spec: %w", err)
	}
	s, err := decode(b)
	if err != nil {
		return nil, fmt.Errorf("load spec %s: %w", path, err)
	}
	return s, nil
}

func decode(b []byte) (*specs.Spec, error) {
	if len(b) > maxConfig {
		return nil, fmt.Errorf("more than %d MiB: %w", maxConfig>>20, ErrInvalid)
	}
	var s *specs.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		if typ, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return nil, fmt.Errorf("%s: a JSON %s, where the spec has another type: %w", typ.Field, typ.Value, ErrInvalid)
		}
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if s == nil {
		return nil, fmt.Errorf("it is null: %w", ErrInvalid)
	}
	return s, nil
}

// problems collects what is wrong with a spec.
type problems struct{ list []*problem }

// invalid and refuse add a problem of a field, named as in config.json.
func (p *problems) invalid(field, format string, args ...string) {
	p.add(ErrInvalid, field, format, args)
}

func (p *problems) refuse(field, format string, args ...string) {
	p.add(ErrUnsupported, field, format, args)
}

func (p *problems) add(kind error, field, format string, args []string) {
	for _, a := range args {
		format = strings.Replace(format, "%q", fmt.Sprintf("%q", clip(a)), 1)
	}
	p.list = append(p.list, &problem{field, format, kind})
}

// clip keeps a message readable whatever the spec holds.
func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// err joins the problems, ordered by field, since some were found in a map.
func (p *problems) err() error {
	slices.SortStableFunc(p.list, func(a, b *problem) int { return strings.Compare(a.field, b.field) })
	errs := make([]error, len(p.list))
	for i, pr := range p.list {
		errs[i] = pr
	}
	return errors.Join(errs...)
}

// problem is one thing that is wrong with one field.
type problem struct {
	field, text string
	kind        error
}

func (p *problem) Error() string { return p.field + ": " + p.text }
func (p *problem) Unwrap() error { return p.kind }
