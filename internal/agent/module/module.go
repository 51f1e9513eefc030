// Package module loads kernel modules in the guest.
//
// The initrd brings a list of them, made by internal/guestimage: a line
// "phase name path [dep dep ...]" for each module, dependencies first. What is
// not in the list is taken to be part of the kernel, so that a kernel without
// modules needs no list. The list and the modules are trusted: they come with
// the kernel.
package module

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Phases of the list: when a module is loaded.
const (
	PhaseBoot  = "boot"  // always
	PhaseNet   = "net"   // for network interfaces
	PhaseVsock = "vsock" // for a link over vsock
	PhaseLazy  = "lazy"  // when something asks for it by name
)

type entry struct {
	phase, name, path string
	deps              []string
}

// Set is the modules of the guest. Its methods are safe for concurrent use.
type Set struct {
	list  []entry
	index map[string]int // of list, by name
	load  func(path string) error

	mu     sync.Mutex
	loaded map[string]bool // guarded by mu
}

// Open reads the list at path. A list that does not exist is an empty one.
func Open(path string) (*Set, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read module list: %w", err)
	}
	return parse(string(b), finit)
}

func parse(text string, load func(path string) error) (*Set, error) {
	s := &Set{index: make(map[string]int), loaded: make(map[string]bool), load: load}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if len(f) < 3 {
			return nil, fmt.Errorf("module list: line %q has no path", strings.TrimSpace(line))
		}
		e := entry{phase: f[0], name: f[1], path: f[2], deps: f[3:]}
		for _, d := range e.deps {
			if _, ok := s.index[d]; !ok {
				return nil, fmt.Errorf("module list: %s needs %s, which does not come before it", e.name, d)
			}
		}
		s.index[e.name] = len(s.list)
		s.list = append(s.list, e)
	}
	return s, nil
}

// Load loads the named modules and what they depend on, in this order. Names
// may have dashes for underscores. All are tried; the errors are joined.
func (s *Set) Load(names ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, n := range names {
		if err := s.loadLocked(strings.ReplaceAll(n, "-", "_")); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// LoadPhase loads all modules of a phase. All are tried; the errors are
// joined.
func (s *Set) LoadPhase(phase string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, e := range s.list {
		if e.phase == phase {
			if err := s.loadLocked(e.name); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func (s *Set) loadLocked(name string) error {
	i, ok := s.index[name]
	if !ok || s.loaded[name] {
		return nil
	}
	e := s.list[i]
	for _, d := range e.deps {
		if err := s.loadLocked(d); err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	if err := s.load(e.path); err != nil {
		return fmt.Errorf("load module %s: %w", name, err)
	}
	s.loaded[name] = true
	return nil
}

// finit loads one module file. One that is loaded or built in already is no
// error.
func finit(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return os.NewSyscallError("finit_module", err)
}
