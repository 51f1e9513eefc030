package subject

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
)

// first tells that there is output.
func first(out []byte) bool { return len(out) > 0 }

// runOnce runs a command that runs a container, to its end.
func runOnce(cmd *exec.Cmd) (Start, error) {
	start := time.Now()
	t, err := untilOutput(cmd, first, false)
	return Start{First: t, Whole: time.Since(start).Seconds()}, err
}

// untilOutput returns the seconds until enough says so of what the command has
// written, and then waits for its end, or kills it.
func untilOutput(cmd *exec.Cmd, enough func([]byte) bool, kill bool) (float64, error) {
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	buf := make([]byte, 4096)
	for {
		n, err := out.Read(buf)
		if enough(buf[:n]) {
			t := time.Since(start).Seconds()
			if kill {
				err := cmd.Process.Kill()
				_ = cmd.Wait() // it was killed
				return t, err
			}
			_, _ = io.Copy(io.Discard, out) // Wait tells
			if err := cmd.Wait(); err != nil {
				return 0, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, errOut.Bytes())
			}
			return t, nil
		}
		if err != nil {
			werr := cmd.Wait() // it has said everything only then
			return 0, errors.Join(fmt.Errorf("%s: ended without the output: %s", cmd.Args[0], errOut.Bytes()), werr)
		}
	}
}

// copyOutput runs a command to its end, which has to be a success, with its
// output going to out, as fast as it comes.
func copyOutput(cmd *exec.Cmd, out io.Writer) error {
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	_, cerr := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{pipe}, make([]byte, 256<<10))
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, errOut.Bytes())
	}
	return cerr
}
