package qemu

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/vmm/qmp"
)

// said is a command that the monitor was given.
type said struct {
	Name      string         `json:"execute"`
	Arguments map[string]any `json:"arguments"`
	ID        int            `json:"id"`
}

// monitored returns a machine whose monitor answers as answer says ("" for
// success), and what it was told, once that is over.
func monitored(t *testing.T, answer func(said) string) (m *Machine, heard func() []said) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "qmp")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var list []said
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		fmt.Fprintln(theirs, `{"QMP": {}}`)
		for lines := bufio.NewScanner(theirs); lines.Scan(); {
			var c said
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				t.Errorf("%s: %v", lines.Text(), err)
				return
			}
			list = append(list, c)
			text := answer(c)
			if text == "" {
				text = `"return": {}`
			}
			fmt.Fprintf(theirs, "{%s, \"id\": %d}\n", text, c.ID)
		}
	}()
	m = &Machine{phase: started, disks: map[string]*disk{}, done: make(chan struct{})}
	m.monitor, err = qmp.Connect(t.Context(), ours, func(e qmp.Event) {
		if e.Name == "DEVICE_DELETED" {
			m.deviceDeleted(e.Data)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	heard = func() []said {
		_ = m.monitor.Close()
		<-ended
		_ = theirs.Close()
		return list
	}
	t.Cleanup(func() { heard() })
	return m, heard
}

// diskOf returns a disk that is a file.
func diskOf(t *testing.T) vmm.Disk {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "disk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return vmm.Disk{ID: "kata-1", File: f}
}

// TestDiskErrorsAreTheGuests: a host without space left must not stop the machine.
func TestDiskErrorsAreTheGuests(t *testing.T) {
	m, heard := monitored(t, func(said) string { return "" })
	if err := m.AddDisk(t.Context(), diskOf(t)); err != nil {
		t.Fatal(err)
	}
	for _, c := range heard() {
		if c.Name == "device_add" && c.Arguments["werror"] == "report" && c.Arguments["rerror"] == "report" {
			return
		}
	}
	t.Errorf("QEMU was told %v", heard())
}
