package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"time"

	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/vmm/qmp"
	"golang.org/x/sys/unix"
)

// diskID is what a disk may be called: the name is its serial number in the
// guest, and part of names in QEMU.
var diskID = regexp.MustCompile(`^[a-z0-9-]{1,20}$`)

// undoTimeout is how long a disk that could not be attached in full may take to
// be detached.
const undoTimeout = 10 * time.Second

// disk is a disk that is attached.
type disk struct {
	unit    int           // of the one target; no other disk has it
	deleted chan struct{} // closed by QEMU's event

	// What there is to take back, or may be: set before the disk is given out.
	set               fdSet
	file, node, ready bool
}

// fdSet is QEMU's name for a file that was passed to it.
type fdSet struct {
	Set int64 `json:"fdset-id"`
	FD  int64 `json:"fd"`
}

// AddDisk attaches a disk; see vmm.Machine. The file's access mode has to be
// that of the disk: QEMU opens it again through its descriptor.
func (m *Machine) AddDisk(ctx context.Context, d vmm.Disk) error {
	if err := m.addDisk(ctx, d); err != nil {
		return fmt.Errorf("attach disk %q: %w", d.ID, m.gone(err))
	}
	return nil
}

func (m *Machine) addDisk(ctx context.Context, d vmm.Disk) error {
	if !diskID.MatchString(d.ID) {
		return errors.New("its id is not 1 to 20 lower-case letters, digits and dashes")
	}
	protocol, err := protocolOf(d)
	if err != nil {
		return err
	}
	monitor, err := m.control()
	if err != nil {
		return err
	}
	added := &disk{deleted: make(chan struct{})}
	if err := m.reserve(d.ID, added); err != nil {
		return err
	}
	if err := m.plug(ctx, monitor, d, protocol, added); err != nil {
		// What was made is taken back even if the context has ended.
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if undo := m.unplug(back, monitor, d.ID, added); undo != nil {
			return errors.Join(err, undo) // no other disk can have its name and unit
		}
		m.release(d.ID)
		return err
	}
	return nil
}

// plug makes the three things that a disk is: a file, a block node that reads
// it, a device that reads the node. A command without an answer may have been
// obeyed; one that is refused has not.
func (m *Machine) plug(ctx context.Context, monitor *qmp.Client, d vmm.Disk, protocol string, added *disk) error {
	answer, err := monitor.Execute(ctx, qmp.Command{Name: "add-fd", File: d.File})
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, &added.set); err != nil {
		return fmt.Errorf("add-fd: %w", err)
	}
	added.file = true
	// What the guest discards makes a hole in the file, as it would on the host.
	err = execute(ctx, monitor, "blockdev-add", blockdev{
		Driver: "raw", NodeName: nodeName(d.ID), ReadOnly: d.ReadOnly, Discard: "unmap",
		File: blockFile{Driver: protocol, Filename: fmt.Sprintf("/dev/fdset/%d", added.set.Set), Discard: "unmap"},
	})
	if added.node = !refused(err); err != nil {
		return err
	}
	err = execute(ctx, monitor, "device_add", scsiDisk{
		Driver: "scsi-hd", ID: nodeName(d.ID), Bus: "scsi.0", Unit: added.unit, Drive: nodeName(d.ID), Serial: d.ID,
		OnReadError: "report", OnWriteError: "report",
	})
	if added.ready = !refused(err); err != nil {
		return err
	}
	if d.Limits == (vmm.DiskLimits{}) {
		return nil
	}
	return execute(ctx, monitor, "block_set_io_throttle", throttle{
		ID:             nodeName(d.ID),
		ReadBytes:      d.Limits.ReadBytes,
		WriteBytes:     d.Limits.WriteBytes,
		ReadOperations: d.Limits.ReadOperations, WriteOperations: d.Limits.WriteOperations,
	})
}

// refused tells whether the error is QEMU's answer.
func refused(err error) bool {
	var refusal *qmp.Error
	return errors.As(err, &refusal)
}

// RemoveDisk detaches a disk; see vmm.Machine.
func (m *Machine) RemoveDisk(ctx context.Context, id string) error {
	if err := m.removeDisk(ctx, id); err != nil {
		return fmt.Errorf("detach disk %q: %w", id, m.gone(err))
	}
	return nil
}

func (m *Machine) removeDisk(ctx context.Context, id string) error {
	monitor, err := m.control()
	if err != nil {
		return err
	}
	m.mu.Lock()
	d := m.disks[id]
	m.mu.Unlock()
	if d == nil {
		return errors.New("there is no such disk")
	}
	if err := m.unplug(ctx, monitor, id, d); err != nil {
		return err
	}
	m.release(id)
	return nil
}

// unplug takes back what plug has made.
func (m *Machine) unplug(ctx context.Context, monitor *qmp.Client, id string, d *disk) error {
	if d.ready {
		if err := m.eject(ctx, monitor, id, d); err != nil {
			return err
		}
	}
	if d.node {
		if err := execute(ctx, monitor, "blockdev-del", nodeRef{nodeName(id)}); err != nil {
			return err
		}
	}
	if !d.file {
		return nil
	}
	return execute(ctx, monitor, "remove-fd", d.set)
}

// eject removes the device, which may be gone: then an earlier try did not end.
func (m *Machine) eject(ctx context.Context, monitor *qmp.Client, id string, d *disk) error {
	err := execute(ctx, monitor, "device_del", deviceRef{nodeName(id)})
	var refusal *qmp.Error
	if errors.As(err, &refusal) && refusal.Class == "DeviceNotFound" {
		return nil
	}
	if err != nil {
		return err
	}
	select {
	case <-d.deleted:
		return nil
	case <-m.done:
		return vmm.ErrGone
	case <-ctx.Done():
		return fmt.Errorf("wait until the guest lets go of it: %w", ctx.Err())
	}
}

// reserve enters a disk before it is attached, so that no second one can have
// its name or its unit.
func (m *Machine) reserve(id string, d *disk) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.disks[id] != nil {
		return errors.New("there is such a disk already")
	}
	used := map[int]bool{}
	for _, taken := range m.disks {
		used[taken.unit] = true
	}
	for used[d.unit] {
		d.unit++
	}
	m.disks[id] = d
	return nil
}

func (m *Machine) release(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.disks, id)
}

// deviceDeleted handles QEMU's event: the guest has let go of a device.
func (m *Machine) deviceDeleted(data json.RawMessage) {
	var event struct {
		Device string `json:"device"`
	}
	if err := json.Unmarshal(data, &event); err != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, d := range m.disks {
		if nodeName(id) != event.Device {
			continue
		}
		select {
		case <-d.deleted: // told before
		default:
			close(d.deleted)
		}
	}
}

// gone replaces the error of a broken connection by what it means.
func (m *Machine) gone(err error) error {
	if errors.Is(err, qmp.ErrClosed) {
		return fmt.Errorf("%w: %w", vmm.ErrGone, err)
	}
	return err
}

// protocolOf returns QEMU's name for what the disk's file is.
func protocolOf(d vmm.Disk) (string, error) {
	info, err := d.File.Stat()
	if err != nil {
		return "", err
	}
	flags, err := unix.FcntlInt(d.File.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return "", fmt.Errorf("read the mode of its file: %w", err)
	}
	want := unix.O_RDWR
	if d.ReadOnly {
		want = unix.O_RDONLY
	}
	if flags&unix.O_ACCMODE != want {
		return "", fmt.Errorf("its file is not opened as the disk is to be (read-only: %t)", d.ReadOnly)
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return "file", nil
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		return "host_device", nil
	default:
		return "", fmt.Errorf("its file is neither a regular file nor a block device but %s", mode.Type())
	}
}

func nodeName(id string) string { return "disk-" + id }

// The arguments of the commands above, in QMP's words.
type (
	blockdev struct {
		Driver   string    `json:"driver"`
		NodeName string    `json:"node-name"`
		ReadOnly bool      `json:"read-only"`
		Discard  string    `json:"discard"`
		File     blockFile `json:"file"`
	}
	blockFile struct {
		Driver   string `json:"driver"`
		Filename string `json:"filename"`
		Discard  string `json:"discard"`
	}
	// scsiDisk is on the only target, so that a guest finds all disks there and
	// need not look at 256. An error is the guest's to deal with: what QEMU does
	// by itself, when the host has no space left, is to stop the machine for good.
	scsiDisk struct {
		Driver       string `json:"driver"`
		ID           string `json:"id"`
		Bus          string `json:"bus"`
		Target       int    `json:"scsi-id"`
		Unit         int    `json:"lun"`
		Drive        string `json:"drive"`
		Serial       string `json:"serial"`
		OnReadError  string `json:"rerror"`
		OnWriteError string `json:"werror"`
	}
	nodeRef struct {
		NodeName string `json:"node-name"`
	}
	deviceRef struct {
		ID string `json:"id"`
	}
	// throttle says how much may be used each second; QEMU wants the sums, too.
	throttle struct {
		ID              string `json:"id"`
		Bytes           uint64 `json:"bps"`
		ReadBytes       uint64 `json:"bps_rd"`
		WriteBytes      uint64 `json:"bps_wr"`
		Operations      uint64 `json:"iops"`
		ReadOperations  uint64 `json:"iops_rd"`
		WriteOperations uint64 `json:"iops_wr"`
	}
)

// execute runs a command whose answer says nothing.
func execute[A blockdev | scsiDisk | nodeRef | deviceRef | throttle | fdSet | capabilitiesArgs | announcement | migrationURI](ctx context.Context, c *qmp.Client, name string, arguments A) error {
	text, err := json.Marshal(arguments)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err = c.Execute(ctx, qmp.Command{Name: name, Arguments: text})
	return err
}
