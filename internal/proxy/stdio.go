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
