// Package shim is containerd-shim-kata-v2: containerd starts one for each pod or
// single container, and asks it by ttRPC for what is to be done with the
// containers in it. The process owns the sandbox (internal/sandbox), as
// kata-proxy does for the command lines.
//
//	containerd ── start ──▶ (ends) ── starts ──▶ the shim ══ sandbox
//	           ◀─ address of its socket ─         ▲
//	           ══ Task service, ttRPC ════════════╯
//
// Only root can connect to the socket, by its mode, whoever can enter the
// directory: who can connect may do everything. When the shim has died, containerd runs it with "delete", which
// removes what is left by the sandbox's ledger.
package shim

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/seed-efd44b36/kata/internal/features"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/seed-efd44b36/kata/internal/version"
	"google.golang.org/protobuf/proto"
)

// maxInput bounds what containerd sends to a command, in bytes.
const maxInput = 10 << 20

// startTimeout bounds `start`, which makes the guest image the first time, and
// may have to fetch a kernel for it.
const startTimeout = 10 * time.Minute

// command is one call of the program.
type command struct {
	namespace, id, bundle string
	address               string // of containerd, gRPC
	debug                 bool
	stdin                 io.Reader
	stdout                io.Writer
}

// Main is the program. It returns its exit status.
func Main(args []string) int {
	c := command{stdin: os.Stdin, stdout: os.Stdout}
	fs := flag.NewFlagSet("containerd-shim-kata-v2", flag.ContinueOnError)
	fs.StringVar(&c.namespace, "namespace", "", "containerd's namespace")
	fs.StringVar(&c.id, "id", "", "id of the container")
	fs.StringVar(&c.bundle, "bundle", "", "the container's directory")
	fs.StringVar(&c.address, "address", "", "containerd's socket")
	fs.BoolVar(&c.debug, "debug", false, "log more")
	fs.String("publish-binary", "", "not used: events go by ttRPC")
	fs.String("socket", "", "not used: the socket is inherited")
	info := fs.Bool("info", false, "tell what this runtime can do, as a message for containerd")
	short := fs.Bool("v", false, "print the version")
	long := fs.Bool("version", false, "print the version")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	var err error
	switch action := fs.Arg(0); {
	case *short || *long:
		_, err = fmt.Fprintf(c.stdout, "containerd-shim-kata-v2 %s (io.containerd.kata.v2)\n", version.String())
	case *info:
		var b []byte
		if b, err = features.Info(); err == nil {
			_, err = c.stdout.Write(b)
		}
	case c.id == "" || c.namespace == "":
		err = errors.New("it is started by containerd (runtime io.containerd.kata.v2); it is of no use by hand")
	case action == "start":
		err = c.start()
	case action == "delete":
		err = c.delete()
	case action == "":
		err = c.serve()
	default:
		err = fmt.Errorf("there is no action %q", action)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "containerd-shim-kata-v2:", err)
		return 1
	}
	return 0
}

// start starts a shim, or finds that of the pod, and tells containerd its
// address.
func (c command) start() error {
	input, err := io.ReadAll(io.LimitReader(c.stdin, maxInput))
	if err != nil {
		return fmt.Errorf("read containerd's parameters: %w", err)
	}
	ctx, cancel := context.WithTimeout(timeline.Program("containerd-shim-kata-v2 start").In(context.Background()), startTimeout)
	defer cancel()
	params := parseParameters(input)
	dir, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("directory of the container: %w", err)
	}
	leader, forSandbox, err := group(c.id, dir)
	if err != nil {
		return err
	}
	address, err := launch(ctx, c, params, leader, dir)
	if err != nil {
		return err
	}
	// For a containerd before 2, which reads it when it starts again.
	if err := os.WriteFile(filepath.Join(dir, "address"), []byte(address), 0o600); err != nil {
		return fmt.Errorf("write the address: %w", err)
	}
	b, err := answer(address, params.results, forSandbox)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err = c.stdout.Write(b)
	return err
}

// answer tells the address in the way that containerd reads: a message, from 2.3 on;
// JSON, from 2.0 on, which is sure for a sandbox only, and which has to be told the
// version of the API there; or as it is.
func answer(address string, results, forSandbox bool) ([]byte, error) {
	const version, protocol = 3, "ttrpc"
	switch {
	case results:
		return proto.Marshal(&bootstrap.BootstrapResult{Version: version, Address: address, Protocol: protocol})
	case forSandbox:
		return json.Marshal(struct {
			Version  int    `json:"version"`
			Address  string `json:"address"`
			Protocol string `json:"protocol"`
		}{version, address, protocol})
	default:
		return []byte(address), nil
	}
}
