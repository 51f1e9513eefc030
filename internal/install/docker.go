package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/seed-efd44b36/kata/deploy/docker"
)

// DockerConfig is where dockerd looks for its configuration.
const DockerConfig = "/etc/docker/daemon.json"

// Docker is a dockerd to be configured.
type Docker struct {
	// Config is the path of its configuration.
	Config string
	// Runtime is the path of kata-runtime.
	Runtime string
}

// Install plans the change that lets dockerd know the runtime kata. What is there
// stays byte by byte, and nothing is changed when applied twice.
func (d Docker) Install() (Change, error) {
	ch, err := d.plan(func(old []byte) ([]byte, error) {
		if len(bytes.TrimSpace(old)) == 0 {
			return inDirectory(docker.Daemon, filepath.Dir(d.Runtime)), nil
		}
		f, err := locate(old)
		if err != nil {
			return nil, err
		}
		if have, ok := f.runtimes["kata"]; ok {
			var r struct {
				Path string `json:"path"`
			}
			if err := json.Unmarshal(have, &r); err != nil || r.Path != d.Runtime {
				return nil, fmt.Errorf("the runtime kata is there already, as %s; remove it first", have)
			}
			return old, nil
		}
		text, at := d.whole(f.empty), f.top
		if f.runtimes != nil {
			text, at = d.entry(len(f.runtimes) == 0), f.inner
		}
		return bytes.Join([][]byte{old[:at], []byte(text), old[at:]}, nil), nil
	})
	if err != nil {
		return Change{}, fmt.Errorf("install for docker: %w", err)
	}
	return ch, nil
}

// Uninstall plans the change that undoes Install.
func (d Docker) Uninstall() (Change, error) {
	ch, err := d.plan(func(old []byte) ([]byte, error) {
		if bytes.Equal(old, inDirectory(docker.Daemon, filepath.Dir(d.Runtime))) {
			return d.empty() // it was begun by Install
		}
		if len(bytes.TrimSpace(old)) == 0 {
			return old, nil
		}
		f, err := locate(old)
		if err != nil {
			return nil, err
		}
		if _, ok := f.runtimes["kata"]; !ok {
			return old, nil
		}
		if f.standard == "kata" {
			return nil, errors.New("the runtime kata is the default-runtime; make another one that first")
		}
		for _, member := range []struct {
			at   int
			text string
		}{{f.top, d.whole(true)}, {f.inner, d.entry(true)}} {
			if rest, ok := bytes.CutPrefix(old[member.at:], []byte(member.text)); ok {
				// Where it is the only member there is no comma after it.
				return append(bytes.Clone(old[:member.at]), bytes.TrimPrefix(rest, []byte(","))...), nil
			}
		}
		return nil, errors.New("the runtime kata is not as `kata install docker` has written it; take it out of runtimes by hand")
	})
	if err != nil {
		return Change{}, fmt.Errorf("uninstall for docker: %w", err)
	}
	return ch, nil
}

// empty is the file without content that Install has found, or nil for none.
func (d Docker) empty() ([]byte, error) {
	saved, err := os.ReadFile(d.Config + backupSuffix)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(saved)) > 0 {
		return nil, nil
	}
	return saved, err
}

// whole is the member of the file's object that Install adds, and entry that of
// runtimes, where it is there.
func (d Docker) whole(only bool) string {
	return fmt.Sprintf("\n  \"runtimes\": {%s\n  }", d.entry(true)) + comma(only)
}

func (d Docker) entry(only bool) string {
	path, err := json.Marshal(d.Runtime)
	if err != nil {
		return "" // a string has no error
	}
	return fmt.Sprintf("\n    \"kata\": {\n      \"path\": %s\n    }", path) + comma(only)
}

func comma(only bool) string {
	if only {
		return ""
	}
	return ","
}

func (d Docker) plan(edit func(old []byte) ([]byte, error)) (Change, error) {
	ch, err := observe(d.Config)
	if err != nil {
		return Change{}, fmt.Errorf("%s: %w", d.Config, err)
	}
	if ch.Before == nil && d.Config != DockerConfig {
		if _, err := os.Stat(filepath.Dir(d.Config)); err != nil {
			return Change{}, fmt.Errorf("%s: %w; make its directory first if dockerd reads its configuration there", d.Config, err)
		}
	}
	if ch.After, err = edit(ch.Before); err != nil {
		return Change{}, fmt.Errorf("%s: %w", d.Config, err)
	}
	if len(bytes.TrimSpace(ch.After)) > 0 && !json.Valid(ch.After) {
		return Change{}, fmt.Errorf("%s would not be valid any more; add what deploy/docker/daemon.json has by hand", d.Config)
	}
	ch.begun = ch.Before == nil || ch.After == nil
	ch.pristine = len(ch.Before) < len(ch.After)
	return ch, nil
}

// place is what has to be known of a daemon.json.
type place struct {
	// top is the offset after the first brace, inner after that of runtimes.
	top, inner int
	runtimes   map[string]json.RawMessage // nil when there are none
	standard   string                     // default-runtime
	empty      bool                       // it has no member
}

func locate(text []byte) (place, error) {
	bad := func(err error) (place, error) {
		return place{}, fmt.Errorf("%w; mend it first: `dockerd --validate --config-file` has to accept it", err)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return bad(err)
	}
	if members == nil {
		return bad(errors.New("it is not an object"))
	}
	p := place{empty: len(members) == 0, inner: -1}
	if raw, ok := members["default-runtime"]; ok {
		if err := json.Unmarshal(raw, &p.standard); err != nil {
			return bad(fmt.Errorf("default-runtime: %w", err))
		}
	}
	p.top = bytes.IndexByte(text, '{') + 1
	raw, ok := members["runtimes"]
	if !ok {
		return p, nil
	}
	if err := json.Unmarshal(raw, &p.runtimes); err != nil || p.runtimes == nil {
		return bad(errors.Join(errors.New("runtimes is not an object"), err))
	}
	at, err := offset(text, "runtimes")
	if err != nil {
		return bad(err)
	}
	p.inner = at
	return p, nil
}

// offset is where the object that is the named member of the outer one begins,
// after its brace.
func offset(text []byte, name string) (int, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if _, err := dec.Token(); err != nil {
		return 0, err
	}
	at := -1
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return 0, err
		}
		before := dec.InputOffset()
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return 0, err
		}
		if key != json.Token(name) {
			continue
		}
		if at >= 0 {
			return 0, fmt.Errorf("%s is there twice", name)
		}
		at = int(before) + bytes.IndexByte(text[before:], '{') + 1
	}
	if at < 0 {
		return 0, fmt.Errorf("%s is not there", name)
	}
	return at, nil
}
