package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// deleteTimeout is shorter than what containerd waits for `delete`.
	deleteTimeout = 4 * time.Second
	killedCode    = 128 + uint32(unix.SIGKILL)
)

// delete removes what a dead shim has left, by the sandbox's ledger, and tells
// containerd that the container was killed. Nothing else may be printed.
func (c command) delete() error {
	ctx, cancel := context.WithTimeout(context.Background(), deleteTimeout)
	defer cancel()
	bundle := c.bundle
	if bundle == "" {
		var err error
		if bundle, err = os.Getwd(); err != nil {
			return fmt.Errorf("directory of the container: %w", err)
		}
	}
	resp := &task.DeleteResponse{ExitStatus: killedCode, ExitedAt: timestamppb.Now()}
	if err := c.collect(ctx, bundle, resp); err != nil {
		return err
	}
	b, err := proto.Marshal(resp)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err = c.stdout.Write(b)
	return err
}

func (c command) collect(ctx context.Context, bundle string, resp *task.DeleteResponse) error {
	rec, err := readRecord(bundle)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // `start` had not come so far
	}
	if err != nil {
		return err
	}
	if rec.Sandbox == "" {
		return removeUnheard(ctx, rec.Socket)
	}
	if err := sandbox.CheckID(rec.Sandbox); err != nil { // it becomes a path
		return fmt.Errorf("record of the shim: %w", err)
	}
	loaded, err := config.Load(rec.Config)
	if err != nil {
		return err
	}
	state := loaded.Config.Runtime.StateDir
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	st, err := report.Read(state, rec.Sandbox)
	if err != nil { // it has been removed, for another container of the pod
		st, err = report.Read(filepath.Dir(bundle), filepath.Base(bundle))
	}
	if err == nil {
		if !st.Alive {
			tellOthers(bundle, st, log)
		}
		resp.Pid = uint32(st.VMMPID)
		for _, cs := range st.Containers {
			if cs.ID == c.id && cs.Exit != nil { // it had ended before the shim did
				resp.ExitStatus, resp.ExitedAt = cs.Exit.Code, timestamppb.New(cs.Exit.At)
			}
		}
	}
	alive, err := cleanup.Collect(ctx, filepath.Join(state, rec.Sandbox), log, nil)
	if err != nil {
		return fmt.Errorf("remove what the shim of %s has left: %w", rec.Sandbox, err)
	}
	if alive {
		return nil
	}
	if err := os.Remove(rec.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the shim's socket: %w", err)
	}
	return nil
}

// tellOthers leaves what the sandbox has said of itself with the other containers
// of the pod: `delete` is called for each, at the same time or much later, and
// how a container ended before the shim did is to be told for all.
func tellOthers(bundle string, st report.Sandbox, log *slog.Logger) {
	for _, c := range st.Containers {
		if c.Bundle == bundle || filepath.Dir(c.Bundle) != filepath.Dir(bundle) {
			continue
		}
		// One that has been deleted has no bundle.
		if err := report.Leave(c.Bundle, st); err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Warn("the exit code of a container is lost", "container", c.ID, "error", err)
		}
	}
}

// removeUnheard removes a socket at which nobody listens.
func removeUnheard(ctx context.Context, path string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		return conn.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return nil // it is not there, or somebody is too busy to answer
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the shim's socket: %w", err)
	}
	return nil
}
