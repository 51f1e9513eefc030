package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
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

// TestDiskThatFailsIsTakenBack: in the order that QEMU needs, and as far as
// there is something.
func TestDiskThatFailsIsTakenBack(t *testing.T) {
	const (
		no   = `"error": {"class": "GenericError", "desc": "no"}`
		none = `"error": {"class": "DeviceNotFound", "desc": "none"}`
	)
	for name, tc := range map[string]struct {
		answers map[string]string
		ends    string // the context ends when QEMU has heard this
		undo    []string
		kept    bool
	}{
		"the file is refused":          {answers: map[string]string{"add-fd": no}},
		"the node is refused":          {answers: map[string]string{"blockdev-add": no}, undo: []string{"remove-fd"}},
		"the device is refused":        {answers: map[string]string{"device_add": no}, undo: []string{"blockdev-del", "remove-fd"}},
		"limits are refused":           {answers: map[string]string{"block_set_io_throttle": no}, undo: []string{"device_del", "blockdev-del", "remove-fd"}},
		"no answer, and no device":     {answers: map[string]string{"device_del": none}, ends: "device_add", undo: []string{"device_del", "blockdev-del", "remove-fd"}},
		"no answer, but a device":      {ends: "device_add", undo: []string{"device_del", "blockdev-del", "remove-fd"}},
		"the device cannot be removed": {answers: map[string]string{"device_del": no}, ends: "device_add", undo: []string{"device_del"}, kept: true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			m, heard := monitored(t, func(c said) string {
				answer := tc.answers[c.Name]
				switch {
				case c.Name == tc.ends:
					cancel()
					return `"event": "LATE"`
				case c.Name == "device_del" && answer == "":
					return `"event": "DEVICE_DELETED", "data": {"device": "disk-kata-1"}}` + "\n" + `{"return": {}`
				}
				return answer
			})
			d := diskOf(t)
			d.Limits.ReadBytes = 1
			if err := m.AddDisk(ctx, d); err == nil {
				t.Fatal("no error")
			}
			if _, kept := m.disks[d.ID]; kept != tc.kept {
				t.Errorf("the disk is listed: %t, want %t", kept, tc.kept)
			}
			var undo []string
			for _, c := range heard() {
				if slices.Contains([]string{"device_del", "blockdev-del", "remove-fd"}, c.Name) {
					undo = append(undo, c.Name)
				}
			}
			if !slices.Equal(undo, tc.undo) {
				t.Errorf("undone by %v, want %v", undo, tc.undo)
			}
		})
	}
}
