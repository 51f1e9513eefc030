package subject

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// plainParams is the command line that the comparison boots with: what every
// machine of this kind needs, and no tuning.
const plainParams = "console=ttyS0 quiet panic=-1 reboot=t tsc=reliable"

// bareMachine is QEMU alone with a guest's kernel and an /init that says a word.
type bareMachine struct{ kernel, initrd, accel string }

const initWord = "/init runs\n"

// hello is a static program that writes a word and ends.
func hello() []byte { return program("hello\n", exit) }

// once implements front: there is no container, and no end but a kill.
func (m *bareMachine) once(ctx context.Context) (Start, error) {
	t, err := m.boot(ctx)
	return Start{First: t, Whole: t}, err
}

func (m *bareMachine) stay(context.Context) (Container, error) {
	return nil, errors.New("QEMU alone has no containers")
}

func newBareMachine(dir, kernel, accel string) (*bareMachine, error) {
	initrd := filepath.Join(dir, "initrd")
	var archive []byte
	archive = appendEntry(archive, "dev", 0o040755, 0, nil)
	archive = appendEntry(archive, "dev/console", 0o020600, 5<<8|1, nil)
	archive = appendEntry(archive, "init", 0o100755, 0, program(initWord, forever))
	archive = appendEntry(archive, "TRAILER!!!", 0, 0, nil)
	if err := os.WriteFile(initrd, archive, 0o600); err != nil {
		return nil, fmt.Errorf("initrd: %w", err)
	}
	return &bareMachine{kernel: kernel, initrd: initrd, accel: accel}, nil
}

// appendEntry appends a file to a cpio archive of the format newc. rdev is
// major<<8|minor.
func appendEntry(archive []byte, name string, mode, rdev int, data []byte) []byte {
	pad := func() {
		for len(archive)%4 != 0 {
			archive = append(archive, 0)
		}
	}
	archive = append(archive, fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		0, mode, 0, 0, 1, 0, len(data), 0, 0, rdev>>8, rdev&0xff, len(name)+1, 0, name)...)
	pad()
	archive = append(archive, data...)
	pad()
	return archive
}

// boot returns the seconds from the start of QEMU to the first word of /init.
func (m *bareMachine) boot(ctx context.Context) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cpu := "max"
	if m.accel == "kvm" {
		cpu = "host"
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", machine+",accel="+m.accel, "-cpu", cpu, "-m", "256",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", m.kernel, "-initrd", m.initrd, "-append", plainParams)
	var seen strings.Builder
	t, err := untilOutput(cmd, func(out []byte) bool {
		seen.Write(out)
		return strings.Contains(seen.String(), strings.TrimSpace(initWord))
	}, true)
	if err != nil {
		return 0, fmt.Errorf("QEMU alone: %w; its console: %.2000q", err, seen.String())
	}
	return t, nil
}
