package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/logfile"
	"github.com/seed-efd44b36/kata/internal/sandbox"
)

// bridge joins a client's connection with the stream of a process in the
// guest, until both directions that exist for that descriptor have ended.
func (s *server) bridge(ctx context.Context, client link.Stream, h link.Header) error {
	defer client.Close()
	p, err := s.process(h.Container, h.Exec)
	if err != nil {
		return err
	}
	guest, err := p.OpenStdio(ctx, int(h.FD))
	if err != nil {
		return err
	}
	defer guest.Close()
	// The client reads one byte before it goes on: then the stream is known
	// to the guest, and Start cannot overtake it.
	if _, err := client.Write([]byte{0}); err != nil {
		return fmt.Errorf("confirm stream: %w", err)
	}
	// Shutdown must not wait for a client that does not read.
	stop := context.AfterFunc(ctx, func() { _ = client.Close(); _ = guest.Close() })
	defer stop()
	if h.FD == 0 {
		return Copy(guest, client)
	}
	return Copy(client, guest)
}

// Copy copies until the end of src and passes the end on to dst. That one side
// has gone is not an error: it is how streams end.
func Copy(dst link.Stream, src io.Reader) error {
	_, err := link.Copy(dst, src)
	if cerr := dst.CloseWrite(); err == nil && !link.IsClosed(cerr) {
		err = cerr
	}
	if link.IsClosed(err) {
		return nil
	}
	return err
}

// writeLog sends the output of a container to its log file. wg is done when
// all of it has been written.
func (s *server) writeLog(ctx context.Context, c *sandbox.Container, path string, wg *sync.WaitGroup) error {
	log, err := logfile.Create(path)
	if err != nil {
		return fmt.Errorf("log of container %s: %w", c.ID(), err)
	}
	var writers sync.WaitGroup
	for fd, name := range map[int]string{1: "stdout", 2: "stderr"} {
		if fd == 2 && !c.Init().Stdio().Stderr {
			continue
		}
		st, err := c.Init().OpenStdio(ctx, fd)
		if err != nil {
			return errors.Join(err, log.Close())
		}
		writers.Go(func() {
			defer st.Close()
			w := log.Stream(name)
			if _, err := link.Copy(w, st); err != nil && !link.IsClosed(err) {
				s.log.Error("container log", "container", c.ID(), "error", err)
				// A full disk must not stop the container.
				_, _ = io.Copy(io.Discard, st)
			}
			_ = w.Close()
		})
	}
	wg.Go(func() {
		writers.Wait()
		if err := log.Close(); err != nil {
			s.log.Error("container log", "container", c.ID(), "error", err)
		}
	})
	return nil
}

// ownDirs puts directories into the sandbox's ledger.
func (s *server) ownDirs(dirs []string) error {
	for _, d := range dirs {
		if err := s.sb.Own(cleanup.Record{Kind: cleanup.KindDir, Name: d}, nil); err != nil {
			return err
		}
	}
	return nil
}
