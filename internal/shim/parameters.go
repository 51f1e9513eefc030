package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// defaultSocketDir is where shims have their sockets: as containerd has it.
const defaultSocketDir = "/run/containerd/s"

// recordFile is in the bundle of the container that a shim was started for.
const recordFile = "kata.json"

// record is what is to be remembered of a start, by the shim and for `delete`.
type record struct {
	// Sandbox is the sandbox's id: that of the container that it is made for,
	// unless another namespace of containerd, or another engine, has it in use.
	// Empty: `start` has not come so far.
	Sandbox string `json:"sandbox"`
	// Socket is the path of the shim's socket.
	Socket string `json:"socket"`
	// Config is the path of the configuration, empty for the usual one.
	Config string `json:"config,omitempty"`
}

func readRecord(bundle string) (record, error) {
	var r record
	b, err := os.ReadFile(filepath.Join(bundle, recordFile))
	if err != nil {
		return r, fmt.Errorf("read what was started: %w", err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read what was started: %w", err)
	}
	return r, nil
}

func (r record) write(bundle string) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode what was started: %w", err)
	}
	if err := os.WriteFile(filepath.Join(bundle, recordFile), b, 0o600); err != nil {
		return fmt.Errorf("remember what was started: %w", err)
	}
	return report.Reserve(bundle) // for tellOthers
}

// parameters are what containerd sends to `start`.
type parameters struct {
	socketDir string
	options   *runtimeoptions.Options
	// results: containerd reads a message as the answer, not an address.
	results bool
}

// parseParameters reads either of two messages: that of containerd from 2.3, or
// the bare runtime options of those before it. What is neither is none: options
// are those of another runtime as often as not.
func parseParameters(b []byte) parameters {
	p := parameters{socketDir: defaultSocketDir, options: &runtimeoptions.Options{}}
	var params bootstrap.BootstrapParams
	if err := proto.Unmarshal(b, &params); err == nil && params.GetContainerdBinary() != "" {
		p.results = true
		if dir := params.GetSocketDir(); dir != "" {
			p.socketDir = dir
		}
		for _, e := range params.GetExtensions() {
			p.readOptions(e.GetValue())
		}
		return p
	}
	var options anypb.Any
	if err := proto.Unmarshal(b, &options); err == nil {
		p.readOptions(&options)
	}
	return p
}

func (p *parameters) readOptions(a *anypb.Any) {
	o := &runtimeoptions.Options{}
	if a.MessageName() == o.ProtoReflect().Descriptor().FullName() && proto.Unmarshal(a.GetValue(), o) == nil {
		p.options = o
	}
}

// configPath is the configuration that the options name, or the environment. One
// that is given as a text is written to the bundle.
func (p *parameters) configPath(bundle string) (string, error) {
	path, body := p.options.GetConfigPath(), p.options.GetConfigBody()
	switch {
	case path != "":
		if !filepath.IsAbs(path) {
			return "", fmt.Errorf("runtime option ConfigPath: %q is not an absolute path", path)
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("runtime option ConfigPath: %s does not exist", path)
		}
		return path, nil
	case len(body) > 0:
		path = filepath.Join(bundle, "kata.toml")
		if err := os.WriteFile(path, body, 0o600); err != nil {
			return "", fmt.Errorf("runtime option config_body: %w", err)
		}
		return path, nil
	}
	// The shim has an environment of its own, and `delete` may have another.
	return os.Getenv(config.EnvFile), nil
}
