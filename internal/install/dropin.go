package install

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"
	"github.com/seed-efd44b36/kata/deploy/crio"
	"github.com/seed-efd44b36/kata/deploy/podman"
)

// Where engines look for files that are added to their configuration.
const (
	PodmanConfig = "/etc/containers/containers.conf.d/50-kata.conf"
	CRIOConfig   = "/etc/crio/crio.conf.d/50-kata.conf"
)

// installed is the directory that the files of deploy name programs in.
const installed = "/usr/local/bin/"

// DropIn is a file that is ours as a whole, for an engine that merges it with
// the administrator's.
type DropIn struct {
	// Engine is its name, for messages.
	Engine string
	// Path is the file's.
	Path string

	text []byte
}

// Podman is the drop-in for Podman, with the programs in dir.
func Podman(path, dir string) DropIn {
	return DropIn{Engine: "podman", Path: path, text: inDirectory(podman.Containers, dir)}
}

// CRIO is the drop-in for CRI-O, with the programs in dir.
func CRIO(path, dir string) DropIn {
	return DropIn{Engine: "crio", Path: path, text: inDirectory(crio.Runtimes, dir)}
}

// inDirectory replaces the directory of programs in one of our files.
func inDirectory(text []byte, dir string) []byte {
	return bytes.ReplaceAll(text, []byte(installed), []byte(filepath.Clean(dir)+"/"))
}

// marked tells whether a text is what Install writes, of any version and with
// programs in any directory, with nothing changed by hand.
func (d DropIn) marked(text []byte) bool {
	body, ok := bytes.CutPrefix(text, []byte(d.mark()))
	if !ok {
		return false
	}
	body, ok = bytes.CutSuffix(body, []byte(end))
	return ok && toml.Unmarshal(body, new(map[string]any)) == nil
}

func (d DropIn) mark() string {
	return fmt.Sprintf("# kata: begin (kata install %[1]s; kata uninstall %[1]s takes the file away)\n", d.Engine)
}

// Install plans the file. It changes nothing when applied twice.
func (d DropIn) Install() (Change, error) {
	return d.plan("install for", bytes.Join([][]byte{[]byte(d.mark()), d.text, []byte(end)}, nil))
}

// Uninstall plans to take the file away.
func (d DropIn) Uninstall() (Change, error) { return d.plan("uninstall for", nil) }

func (d DropIn) plan(what string, after []byte) (Change, error) {
	ch, err := observe(d.Path)
	if err == nil && ch.Before != nil && !d.marked(ch.Before) {
		err = errors.New("it has not been written by kata, or was edited since; move it away first")
	}
	// The engine reads no directory that is not there.
	if parent := filepath.Dir(filepath.Dir(d.Path)); err == nil && after != nil {
		if _, err = os.Stat(parent); err != nil {
			err = fmt.Errorf("%w; install the engine first, or name the file with --%s-config", err, d.Engine)
		}
	}
	if err != nil {
		return Change{}, fmt.Errorf("%s %s: %s: %w", what, d.Engine, d.Path, err)
	}
	ch.After, ch.begun = after, true
	return ch, nil
}
