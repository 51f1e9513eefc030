package qemu

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/vmm"
)

// impostor returns a configuration whose QEMU is a shell script.
func impostor(t *testing.T, script string) vmm.Config {
	t.Helper()
	c := config()
	c.Dir, c.Share.Server = t.TempDir(), nil
	for path, text := range map[*string]string{
		&c.Binary: "#!/bin/sh\n" + script + "\n", &c.Kernel: "kernel", &c.Initrd: "initrd",
	} {
		f, err := os.CreateTemp(c.Dir, "file-*")
		if err != nil {
			t.Fatal(err)
		}
		*path = f.Name()
		_, err = f.WriteString(text)
		if err := errors.Join(err, f.Chmod(0o700), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func machineOf(t *testing.T, c vmm.Config) vmm.Machine {
	t.Helper()
	m, err := New(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestStartExplainsAQEMUThatFails(t *testing.T) {
	for _, test := range []struct{ name, script, want string }{
		{"dies at once", `echo "no such machine" >&2; exit 3`, "exit status 3\nqemu's last words:\n  no such machine"},
		{"dies by a signal", `kill -SEGV $$`, "signal 11"},
		{"ends as if all were well", `exit 0`, "exit status 0"},
		{"speaks something else", `echo hello >&3; exec sleep 1000`, "decode qmp message"},
		{"dies after the greeting", `echo '{"QMP": {}}' >&3; echo out of memory >&2; exit 1`, "out of memory"},
		{
			"refuses to go on",
			`exec <&3; echo '{"QMP": {}}' >&3; read a; echo '{"return": {}, "id": 1}' >&3
			read a; echo '{"error": {"class": "GenericError", "desc": "cannot"}, "id": 2}' >&3; exec sleep 1000`,
			"cont: cannot",
		},
		{
			"the console tells",
			`printf 'Kernel panic - not syncing: \033[31mno init\n' >&4; exit 0`,
			`the guest's kernel panicked: "\x1b[31mno init"`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := machineOf(t, impostor(t, test.script))
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			err := m.Start(ctx)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Start() = %v, want %q", err, test.want)
			}
			select {
			case <-m.Done():
			default:
				t.Error("something is left running")
			}
		})
	}
}

func TestStartOfASilentQEMUEndsWithTheContext(t *testing.T) {
	m := machineOf(t, impostor(t, "exec sleep 1000"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Start() = %v, want the context's error", err)
	}
	if pids := m.PIDs(); len(pids) != 0 {
		t.Errorf("PIDs() = %v after a failed start", pids)
	}
}

func TestStartRefusesWhatIsNotThere(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(*vmm.Config)
		want  string
	}{
		{"virtiofsd", func(c *vmm.Config) { c.Share.Socket = filepath.Join(c.Dir, "none.sock") }, "virtiofsd"},
		{"kernel is a directory", func(c *vmm.Config) { c.Kernel = c.Dir }, "not a regular file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := impostor(t, "exit 1")
			test.spoil(&c)
			if err := machineOf(t, c).Start(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Start() = %v, want %q", err, test.want)
			}
		})
	}
}
