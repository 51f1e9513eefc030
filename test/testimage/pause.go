package testimage

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

//go:embed pause/pause.c
var pauseSource []byte

// compiler returns the program that builds pause.
func compiler() ([]string, error) {
	cc, err := exec.LookPath("gcc")
	if err != nil {
		return nil, fmt.Errorf("%w; run: apt-get install gcc libc6-dev", err)
	}
	return []string{cc}, nil
}

// writePause writes the layer: one static program, in C, because each pod of a
// test has one and a Go program is twenty times as large.
func writePause(ctx context.Context, w io.Writer, files []string) error {
	dir, err := os.MkdirTemp("", "kata-pause-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "pause")
	cmd := exec.CommandContext(ctx, files[0], "-static", "-Os", "-s", "-x", "c", "-o", program, "-")
	cmd.Stdin = bytes.NewReader(pauseSource)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile pause: %w\n%s", err, out)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	l := &layer{tar: tar.NewWriter(w), dirs: map[string]bool{".": true}}
	l.file("pause", 0o755, data)
	if l.err != nil {
		return l.err
	}
	return l.tar.Close()
}
