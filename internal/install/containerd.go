// Package install puts kata into the configuration of engines and takes it out
// again. The command line calls it. It trusts the administrator who names the
// file, and changes nothing of it but a block between two marks, or one member of
// Docker's. For Podman and CRI-O, which merge files, it is a file of its own.
//
// For containerd the block goes to the end of containerd's own file, not into an imported one:
// containerd 1.x lets an imported file replace the whole section of the CRI, so
// that a drop-in would take away what the administrator has set there.
package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/seed-efd44b36/kata/deploy/containerd"
)

// ContainerdConfig is where containerd looks for its configuration.
const ContainerdConfig = "/etc/containerd/config.toml"

// shim is the runtime's name; containerd makes of it the name of the program.
const shim = "io.containerd.kata.v2"

// Marks of the block that is ours.
const (
	begin = "# kata: begin (kata install containerd; kata uninstall containerd takes it out)\n"
	end   = "# kata: end\n"
)

// Containerd is a containerd to be configured.
type Containerd struct {
	// Config is the path of its configuration.
	Config string
	// Program is containerd, by path or looked up in PATH. It is asked for its
	// version where there is no configuration yet.
	Program string
	// Untrusted lets pods that are annotated as untrusted run in kata.
	Untrusted bool
}

// Install plans the change that lets containerd know kata. It changes nothing
// when applied twice.
func (c Containerd) Install(ctx context.Context) (Change, error) {
	ch, err := c.plan(func(old []byte) ([]byte, error) {
		rest, block := divide(old)
		head := headOf(block)
		if old == nil {
			v, err := c.newVersion(ctx)
			if err != nil {
				return nil, err
			}
			head = fmt.Appendf(nil, "version = %d\n", v)
		}
		return c.add(rest, head, bytes.Contains(block, []byte("untrusted_workload_runtime]")))
	})
	if err != nil {
		return Change{}, fmt.Errorf("install for containerd: %w", err)
	}
	return ch, nil
}

// Uninstall plans the change that undoes Install.
func (c Containerd) Uninstall() (Change, error) {
	ch, err := c.plan(func(old []byte) ([]byte, error) {
		rest, block := divide(old)
		if len(rest) == 0 && len(headOf(block)) > 0 {
			return nil, nil // a file that Install has begun
		}
		_, err := read(rest)
		return rest, err
	})
	if err != nil {
		return Change{}, fmt.Errorf("uninstall for containerd: %w", err)
	}
	return ch, nil
}

// plan applies an edit to the configuration, in memory.
func (c Containerd) plan(edit func(old []byte) ([]byte, error)) (Change, error) {
	ch, err := observe(c.Config)
	if err != nil {
		return Change{}, err
	}
	_, block := divide(ch.Before)
	ch.pristine, ch.begun = block == nil, ch.Before == nil || len(headOf(block)) > 0
	if err := c.refuse(ch.Before); err != nil {
		return Change{}, fmt.Errorf("%s: %w", c.Config, err)
	}
	if ch.After, err = edit(ch.Before); err != nil {
		return Change{}, fmt.Errorf("%s: %w", c.Config, err)
	}
	if ch.After != nil {
		f, err := read(ch.After)
		if err != nil {
			return Change{}, fmt.Errorf("%s would not be valid any more: %w; append the tables of deploy/containerd by hand", c.Config, err)
		}
		ch.criDisabled = f.criDisabled()
	}
	return ch, nil
}

// refuse tells what makes it unlikely that this is containerd's configuration.
func (c Containerd) refuse(text []byte) error {
	if dir := filepath.Dir(c.Config); text == nil && c.Config != ContainerdConfig {
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("its directory cannot be used: %w; make it first if containerd reads its configuration there", err)
		}
	}
	// Nothing of containerd's has these names.
	var kata struct {
		Hypervisor, Runtime, Agent, Network any
	}
	if err := toml.Unmarshal(text, &kata); err == nil &&
		(kata.Hypervisor != nil || kata.Runtime != nil || kata.Agent != nil || kata.Network != nil) {
		return errors.New("this is kata's own configuration; name containerd's with --containerd-config")
	}
	return nil
}

// newVersion is the version of a configuration that is begun: the newest one
// that the containerd which is installed knows.
func (c Containerd) newVersion(ctx context.Context) (int, error) {
	program, err := exec.LookPath(c.Program)
	if err != nil {
		return 0, fmt.Errorf("does not exist, and neither does containerd: %w; install containerd first (apt-get install containerd), or name its configuration with --containerd-config", err)
	}
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("ask %s for its version: %w", program, err)
	}
	// containerd SOURCE VERSION REVISION
	words := strings.Fields(string(out))
	if len(words) < 3 {
		return 0, fmt.Errorf("%s --version says %.80q, want words of which the third is the version; write the configuration first: %s config default >%s", program, out, program, c.Config)
	}
	if strings.HasPrefix(strings.TrimPrefix(words[2], "v"), "1.") {
		return 2, nil
	}
	return 3, nil
}

// file is what has to be known of a configuration.
type file struct {
	Version  int      `toml:"version"`
	Disabled []string `toml:"disabled_plugins"`
	Plugins  map[string]struct {
		Containerd struct {
			Untrusted handler            `toml:"untrusted_workload_runtime"`
			Runtimes  map[string]handler `toml:"runtimes"`
		} `toml:"containerd"`
	} `toml:"plugins"`
}

type handler struct {
	Type string `toml:"runtime_type"`
}

func read(text []byte) (file, error) {
	var f file
	if err := toml.Unmarshal(text, &f); err != nil {
		if d, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column := d.Position()
			return file{}, fmt.Errorf("line %d, column %d: %w; mend it first: `containerd config dump` has to accept it", line, column, err)
		}
		return file{}, fmt.Errorf("%w; mend it first: `containerd config dump` has to accept it", err)
	}
	return f, nil
}

// criDisabled tells whether pods cannot run at all, as with Docker's package.
func (f file) criDisabled() bool {
	for _, d := range f.Disabled {
		switch d {
		case "cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime":
			return true
		}
	}
	return false
}

// form is the version of our files for a version of the configuration, with the
// name of the plugin there.
func form(version int) (n int, plugin string, err error) {
	switch version {
	case 0, 1:
		return 1, "cri", nil
	case 2:
		return 2, "io.containerd.grpc.v1.cri", nil
	case 3, 4: // which differ in things that are not ours
		return 3, "io.containerd.cri.v1.runtime", nil
	}
	return 0, "", fmt.Errorf("version %d is not known to this kata; append the tables of deploy/containerd by hand", version)
}

// add appends the block to a configuration without it. head is the first line of
// the block where it is all there is. Tables that the administrator has written
// already stay as they are. untrusted tells that the block has had the runtime
// for untrusted workloads, which is kept.
func (c Containerd) add(text, head []byte, untrusted bool) ([]byte, error) {
	f, err := read(append(bytes.Clone(head), text...))
	if err != nil {
		return nil, err
	}
	n, plugin, err := form(f.Version)
	if err != nil {
		return nil, err
	}
	names := []string{fmt.Sprintf("config-v%d.toml", n)}
	if c.Untrusted && n > 2 {
		return nil, errors.New("containerd 2 has no runtime for untrusted workloads; use the RuntimeClass kata")
	}
	if n <= 2 && (c.Untrusted || untrusted) {
		names = append(names, fmt.Sprintf("untrusted-v%d.toml", n))
	}
	there := f.Plugins[plugin].Containerd
	var block []byte
	for _, name := range names {
		for _, t := range tables(name) {
			h, ok := there.Runtimes[t.name]
			if t.name == "untrusted_workload_runtime" {
				h, ok = there.Untrusted, there.Untrusted != handler{}
			}
			switch {
			case !ok:
				block = append(block, t.text...)
			case t.name != "runc" && h.Type != shim:
				return nil, fmt.Errorf("%s is there already, with runtime_type %q; remove it, or make it %q", t.name, h.Type, shim)
			}
		}
	}
	if len(block) == 0 {
		return text, nil
	}
	if len(text) > 0 && !bytes.HasSuffix(text, []byte("\n")) {
		text = append(bytes.Clone(text), '\n')
	}
	return bytes.Join([][]byte{text, []byte(begin), head, block, []byte(end)}, nil), nil
}

// divide takes the block out; it is nil when there is none.
func divide(text []byte) (rest, block []byte) {
	before, block, ok := bytes.Cut(text, []byte(begin))
	if !ok {
		return text, nil
	}
	block, after, ok := bytes.Cut(block, []byte(end))
	if !ok {
		return text, nil // somebody has edited the marks; what is ours cannot be told
	}
	return append(bytes.Clone(before), after...), block
}

// headOf is the version that a block begins with when Install has begun the file.
func headOf(block []byte) []byte {
	if !bytes.HasPrefix(block, []byte("version = ")) {
		return nil
	}
	return block[:bytes.IndexByte(block, '\n')+1]
}

// table is one table of our files, with the comment before it.
type table struct {
	name string // the last word of its header
	text []byte
}

// tables divides one of our files. What stands before the first empty line
// describes the file, unless a table follows at once.
func tables(name string) []table {
	text, err := containerd.Files.ReadFile(name)
	if err != nil {
		return nil // it is part of this program, and so are its names
	}
	var list []table
	for paragraph := range bytes.SplitSeq(text, []byte("\n\n")) {
		for line := range bytes.Lines(paragraph) {
			if header, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("[")); ok {
				words := strings.Split(strings.TrimSuffix(string(header), "]"), ".")
				list = append(list, table{name: words[len(words)-1], text: append(bytes.TrimRight(paragraph, "\n"), '\n')})
			}
		}
	}
	return list
}
