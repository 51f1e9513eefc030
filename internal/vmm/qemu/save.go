package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/seed-efd44b36/kata/internal/timeline"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/vmm/qmp"
)

// stateName is what QEMU calls the file of the state.
const stateName = "state"

// kindVersion changes when machines of before must not be restored any more,
// though all that Kind lists is the same.
const kindVersion = "1"

// capability is one setting of QEMU's migration.
type capability struct {
	Capability string `json:"capability"`
	State      bool   `json:"state"`
}

// fdName names a file that is passed by getfd.
type fdName struct {
	Name string `json:"fdname"`
}

// announcement is how often network devices tell that they have moved.
type announcement struct {
	Rounds int `json:"announce-rounds"`
}

// migrationURI tells where the state is.
type migrationURI struct {
	URI string `json:"uri"`
}

// capabilitiesArgs are the arguments of migrate-set-capabilities.
type capabilitiesArgs struct {
	Capabilities []capability `json:"capabilities"`
}

// Kind tells what a machine is made of, but for what differs between machines that
// are copies of one: two machines of one kind can have one template.
func Kind(c vmm.Config) ([]string, error) {
	c.ID, c.State = "template", nil
	c.Memory, c.Share.Server, c.Share.Socket = os.Stdin, os.Stdin, "" // any files
	if err := validate(c); err != nil {
		return nil, fmt.Errorf("configure qemu: %w", err)
	}
	kind := append([]string{kindVersion}, arguments(c, backends{}).args...)
	info, err := os.Stat(c.Binary)
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	kind = append(kind, c.Binary, fmt.Sprint(info.Size(), info.ModTime().UnixNano()))
	if c.Accel != vmm.AccelKVM {
		return kind, nil
	}
	// The guest has seen the host's processor, which is the same until the next
	// boot at least.
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("kind of machine: %w", err)
	}
	return append(kind, string(boot)), nil
}

// Save stops the machine and writes its state; see vmm.Saver.
func (m *Machine) Save(ctx context.Context, state *os.File) error {
	if err := m.save(ctx, state); err != nil {
		return fmt.Errorf("save virtual machine: %w", m.gone(err))
	}
	return nil
}

func (m *Machine) save(ctx context.Context, state *os.File) error {
	if m.cfg.Memory == nil {
		return errors.New("its memory is in no file")
	}
	monitor, err := m.control()
	if err != nil {
		return err
	}
	if _, err := monitor.Execute(ctx, qmp.Command{Name: "stop"}); err != nil {
		return err
	}
	return m.migrate(ctx, monitor, "migrate", state)
}

// restore loads the state into a machine that has not run yet.
func (m *Machine) restore(ctx context.Context, monitor *qmp.Client) error {
	defer timeline.Step(ctx, "restore")()
	// No network device is to announce itself, with the template's address: the guest
	// would do that before it reads its first call.
	if err := execute(ctx, monitor, "migrate-set-parameters", announcement{}); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	if err := m.migrate(ctx, monitor, "migrate-incoming", m.cfg.State); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return nil
}

// migrate moves the state of all devices to or from the file. Memory that is
// shared with a file is in it already.
func (m *Machine) migrate(ctx context.Context, monitor *qmp.Client, command string, state *os.File) error {
	err := execute(ctx, monitor, "migrate-set-capabilities", capabilitiesArgs{[]capability{
		{Capability: "x-ignore-shared", State: true}, {Capability: "events", State: true},
	}})
	if err != nil {
		return err
	}
	args, err := json.Marshal(fdName{stateName})
	if err != nil {
		return err
	}
	if _, err := monitor.Execute(ctx, qmp.Command{Name: "getfd", Arguments: args, File: state}); err != nil {
		return err
	}
	if err := execute(ctx, monitor, command, migrationURI{"fd:" + stateName}); err != nil {
		return err
	}
	select {
	case how := <-m.moved:
		if how != "completed" {
			return fmt.Errorf("%s: %s", command, m.whyNot(ctx, monitor, how))
		}
		return nil
	case <-monitor.Done():
		return qmp.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// whyNot returns QEMU's description of a migration that failed.
func (m *Machine) whyNot(ctx context.Context, monitor *qmp.Client, how string) string {
	answer, err := monitor.Execute(ctx, qmp.Command{Name: "query-migrate"})
	var status struct {
		Desc string `json:"error-desc"`
	}
	if err != nil || json.Unmarshal(answer, &status) != nil || status.Desc == "" {
		return how
	}
	return how + ": " + status.Desc
}

// migration is called by the monitor's reader.
func (m *Machine) migration(data json.RawMessage) {
	var event struct {
		Status string `json:"status"`
	}
	if json.Unmarshal(data, &event) != nil {
		return
	}
	switch event.Status {
	case "completed", "failed", "cancelled":
		select {
		case m.moved <- event.Status:
		default:
		}
	}
}

var _ vmm.Saver = (*Machine)(nil)
