package install

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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
	_, body, _ := bytes.Cut(text, []byte("\n"))
	body, ok := bytes.CutSuffix(body, []byte(end))
	return ok && bytes.Equal(text, d.file(body))
}

// file is the whole of a file. Its first line has a checksum of the text, by which
// marked knows what other versions have written.
func (d DropIn) file(text []byte) []byte {
	mark := fmt.Sprintf("# kata: begin (kata install %[1]s; kata uninstall %[1]s takes the file away; sha256 %[2]x)\n", d.Engine, sha256.Sum256(text))
	return bytes.Join([][]byte{[]byte(mark), text, []byte(end)}, nil)
}

// Install plans the file. It changes nothing when applied twice.
func (d DropIn) Install() (Change, error) {
	return d.plan("install for", d.file(d.text))
}

// Uninstall plans to take the file away.
func (d DropIn) Uninstall() (Change, error) { return d.plan("uninstall for", nil) }

func (d DropIn) plan(what string, after []byte) (Change, error) {
	ch, err := observe(d.Path)
	if err == nil && ch.Before != nil && !d.marked(ch.Before) {
		err = errors.New("it has not been written by kata, or was edited since; move it away, or what was added into a file of its own beside it, and run the command again")
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
