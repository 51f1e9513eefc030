package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"time"

	"github.com/seed-efd44b36/kata/internal/thread"
)

const (
	// readyTimeout is what a program that logs may take to say that it is
	// ready, and after its input has ended to end itself.
	readyTimeout = 12 * time.Second
)

// openLogger starts a program that logs both outputs. As containerd has it: its
// descriptors 3 and 4 are the outputs, 5 is closed by it when it is ready; keys
// and values of the name's query are its arguments.
func (s *Set) openLogger(ctx context.Context, o Options, u *url.URL) error {
	var theirs, ready [2]*os.File
	defer func() {
		for _, f := range append(theirs[:], ready[:]...) {
			if f != nil {
				_ = f.Close() // again, if it is closed already
			}
		}
	}()
	for i := range theirs {
		r, w, err := os.Pipe()
		if err != nil {
			return fmt.Errorf("make pipe: %w", err)
		}
		theirs[i], s.out[1+i] = r, w
	}
	var err error
	if ready[0], ready[1], err = os.Pipe(); err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	cmd := exec.Command(u.Path)
	for key, values := range u.Query() {
		cmd.Args = append(cmd.Args, key)
		if len(values) > 0 {
			cmd.Args = append(cmd.Args, values[0])
		}
	}
	cmd.Env = append(os.Environ(), "CONTAINER_ID="+o.Container, "CONTAINER_NAMESPACE="+o.Namespace)
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirs[0], theirs[1], ready[1]}
	if err := thread.InMounts(o.Mounts, cmd.Start); err != nil {
		return fmt.Errorf("start the program: %w", err)
	}
	ended := make(chan struct{})
	go func() { // ends with the program, which done sees to
		defer close(ended)
		_ = cmd.Wait() // how it ended is its own affair
	}()
	s.done = func() error { return endLogger(cmd, ended) }
	if o.Terminal {
		_ = s.out[2].Close()
		s.out[2] = nil
	}

	_ = ready[1].Close() // the program has its own
	deadline := time.Now().Add(readyTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := ready[0].SetReadDeadline(deadline); err != nil {
		return err
	}
	if _, err := ready[0].Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("wait for the program to be ready (it closes descriptor 5): %w", err)
	}
	return nil
}

// endLogger waits for the end of a program whose input has ended.
func endLogger(cmd *exec.Cmd, ended <-chan struct{}) error {
	select {
	case <-ended:
		return nil
	case <-time.After(readyTimeout):
	}
	err := cmd.Process.Kill()
	<-ended
	return errors.Join(fmt.Errorf("the program that logs, %s, did not end with its input", cmd.Path), err)
}
