package standin

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/containerd/api/events"
	"github.com/seed-efd44b36/kata/internal/shim/publisher"
)

// oomFile is what conmon makes in a bundle when it has seen a kill for want of memory.
const oomFile = "oom"

// Notice says how an engine is told that a process of the container was killed for
// want of memory. Engines look for that in a cgroup of the host, and the container's
// is the guest's.
type Notice struct {
	// Bundle is the directory in which to make the file that conmon makes there.
	// Empty: none.
	Bundle string `json:"bundle,omitempty"`
	// Containerd is the path of the socket where containerd takes events, and
	// Namespace that of the container. Empty: none is sent.
	Containerd string `json:"containerd,omitempty"`
	Namespace  string `json:"namespace,omitempty"`
}

// notifier holds the directories of a Notice, which have no path any more when they
// are of use. containerd's may get a new socket meanwhile.
type notifier struct {
	Notice
	bundle *os.Root
	events *os.File
}

// open opens the directories.
func (n Notice) open() (*notifier, error) {
	o := &notifier{Notice: n}
	var err error
	if n.Bundle != "" {
		if o.bundle, err = os.OpenRoot(n.Bundle); err != nil {
			return nil, fmt.Errorf("bundle: %w", err)
		}
		// That of the container's life before this.
		if err := o.bundle.Remove(oomFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("bundle: %w", err)
		}
	}
	if n.Containerd != "" {
		if o.events, err = os.Open(filepath.Dir(n.Containerd)); err != nil {
			return nil, fmt.Errorf("containerd's socket for events: %w", err)
		}
	}
	return o, nil
}

// give gives the notice. What it cannot tell is in the exit code, too; nobody is
// there to hear of an error.
func (o *notifier) give(container string) {
	if o.bundle != nil {
		_ = o.bundle.WriteFile(oomFile, nil, 0o600)
	}
	if o.events != nil {
		address := filepath.Join("/proc/self/fd", strconv.Itoa(int(o.events.Fd())), filepath.Base(o.Containerd))
		p := publisher.New(address, o.Namespace, slog.New(slog.DiscardHandler))
		p.Publish(&events.TaskOOM{ContainerID: container})
		p.Close()
	}
}
