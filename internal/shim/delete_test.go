package shim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"google.golang.org/protobuf/proto"
)

// TestDeleteTellsHowEachEnded: the sandbox goes with the first container of the
// pod that is asked about, and the others are told of as they ended all the same.
func TestDeleteTellsHowEachEnded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	state, conf := filepath.Join(dir, "state"), filepath.Join(dir, "conf.toml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, "[runtime]\nstate_dir = %q\n", state), 0o600); err != nil {
		t.Fatal(err)
	}
	st := report.Sandbox{ID: "pod", VMMPID: 4242}
	want := map[string]uint32{"pod": 137, "ended": 3, "ran": 137}
	for id, code := range want {
		c := report.Container{ID: id, Bundle: filepath.Join(dir, "tasks", id), Status: report.Running}
		if code != 137 {
			c.Status, c.Exit = report.Stopped, &report.Exit{Code: code, At: time.Now()}
		}
		st.Containers = append(st.Containers, c)
		if err := os.MkdirAll(c.Bundle, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := (record{Sandbox: "pod", Socket: filepath.Join(dir, "socket"), Config: conf}).write(c.Bundle); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(state, "pod"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := report.Write(filepath.Join(state, "pod"), st); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{cleanup.LockFile, cleanup.LedgerFile} {
		if err := os.WriteFile(filepath.Join(state, "pod", file), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"pod", "ended", "ran"} {
		var out bytes.Buffer
		if err := (command{id: id, bundle: filepath.Join(dir, "tasks", id), stdout: &out}).delete(); err != nil {
			t.Fatal(err)
		}
		var r task.DeleteResponse
		if err := proto.Unmarshal(out.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		if r.GetExitStatus() != want[id] || r.GetPid() != 4242 {
			t.Errorf("%s: %v; want code %d and pid 4242", id, &r, want[id])
		}
		if _, err := os.Stat(filepath.Join(state, "pod")); err == nil {
			t.Errorf("%s: the sandbox is still there", id)
		}
	}
}

// TestDeleteElsewhere: what a record names as the sandbox does not lead out of
// the directory of sandboxes.
func TestDeleteElsewhere(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"..", "../x", "a/b"} {
		dir := t.TempDir()
		if err := (record{Sandbox: id, Socket: dir + "/s", Config: dir + "/none"}).write(dir); err != nil {
			t.Fatal(err)
		}
		err := command{id: "c", bundle: dir, stdout: io.Discard}.delete()
		if err == nil || !strings.Contains(err.Error(), "record of the shim") {
			t.Errorf("%q: %v; want a refusal", id, err)
		}
	}
}

// TestDeleteAfterKilledStart: the socket of a `start` that did not come further is
// removed, but not that of a shim.
func TestDeleteAfterKilledStart(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "kata") //nolint:usetesting // the test's name is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.Remove(filepath.Join(dir, recordFile))
		_ = os.Remove(dir)
	})
	socket := filepath.Join(dir, "s")
	l := listenAt(t, socket).(*net.UnixListener)
	l.SetUnlinkOnClose(false)
	if err := (record{Socket: socket}).write(dir); err != nil {
		t.Fatal(err)
	}
	remove := func() {
		if err := (command{id: "c", bundle: dir, stdout: io.Discard}).delete(); err != nil {
			t.Error(err)
		}
	}
	remove()
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("the socket of a live shim: %v", err)
	}
	_ = l.Close()
	remove()
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	remove()
}
