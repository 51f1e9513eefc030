//go:build integration

package qemu

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/kvm"
	"github.com/seed-efd44b36/kata/internal/supervise"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/vmm/vmmtest"
)

func TestConformance(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("root is needed")
	}
	binary, _, err := Find(t.Context(), "")
	if err != nil {
		t.Skip(err)
	}
	image := vmmtest.Guest(t)
	accel := vmm.AccelTCG
	if kvm.Probe(t.Context(), "").Usable {
		accel = vmm.AccelKVM
	}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	for _, machineType := range []string{"q35", "microvm"} {
		t.Run(machineType, func(t *testing.T) {
			if machineType == "microvm" && !image.Kernel.Microvm {
				t.Skip("the guest kernel has no CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES: `make kernel` builds one that has")
			}
			vmmtest.Run(t, vmmtest.Driver{
				New:          func(c vmm.Config) (vmm.Machine, error) { return New(c, log) },
				Capabilities: Capabilities(),
				Virtiofsd:    virtiofsd(),
				Check:        checkConfinement,
				Config: vmm.Config{
					Binary:       binary,
					MachineType:  machineType,
					Accel:        accel,
					Kernel:       image.Kernel.VMLinux,
					Initrd:       image.Initrd,
					KernelParams: guestimage.KernelParams(image.Kernel, accel == vmm.AccelTCG),
				},
			})
		})
	}
}

// virtiofsd returns the path of QEMU's own file server, or "".
func virtiofsd() string {
	for _, path := range []string{"/usr/lib/qemu/virtiofsd"} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// checkConfinement reads from /proc what a running QEMU can do.
func checkConfinement(t *testing.T, m vmm.Machine, c vmm.Config) {
	dir := fmt.Sprintf("/proc/%d", m.PIDs()[0])
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	status := make(map[string]string)
	for line := range strings.Lines(read("status")) {
		name, value, _ := strings.Cut(line, ":")
		status[name] = strings.TrimSpace(value)
	}
	const mask = "0000000000000000"
	identity := "0\t0\t0\t0"
	switch u := user(c); {
	case u != nil:
		identity = fmt.Sprintf("%[1]d\t%[1]d\t%[1]d\t%[1]d", u.UID)
	case c.Accel != vmm.AccelKVM || othersMay("/dev/kvm", 0o6):
		t.Fatal("qemu is root, and does not have to be")
	}
	for name, want := range map[string]string{
		"Uid": identity, "Gid": identity,
		"CapBnd": mask, "CapPrm": mask, "CapEff": mask,
		"CapInh": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2", "Groups": "",
	} {
		if status[name] != want {
			t.Errorf("%s is %q, want %q", name, status[name], want)
		}
	}
	if env := read("environ"); env != "" {
		t.Errorf("the environment is %q, want none", env)
	}
	if !slices.Contains(strings.Split(read("cmdline"), "\x00"), c.ID) {
		t.Error("no argument is the sandbox's id")
	}
	checkDescriptors(t, filepath.Join(dir, "fd"), c)
	checkRoot(t, filepath.Join(dir, "root"), c)
	checkMounts(t, read("mountinfo"), c)
	for _, name := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		theirs, err := os.Readlink(filepath.Join(dir, "ns", name))
		if err != nil {
			t.Fatal(err)
		}
		if ours, err := os.Readlink("/proc/self/ns/" + name); err != nil || ours == theirs {
			t.Errorf("qemu is in our %s namespace (%v)", name, err)
		}
	}
	if supervise.LandlockABI() == 0 {
		t.Error("this kernel has no Landlock: QEMU can open any file")
	}
}

// checkDescriptors finds open files that QEMU should not have.
func checkDescriptors(t *testing.T, dir string, c vmm.Config) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if err != nil {
			continue // closed since
		}
		anonymous := !strings.HasPrefix(target, "/") || strings.HasPrefix(target, "/memfd:")
		if !anonymous && target != "/dev/null" && target != "/dev/kvm" {
			t.Errorf("descriptor %s is %s", entry.Name(), target)
		}
	}
}

// given reports whether QEMU's root is to have path, or something below it.
func given(path string, c vmm.Config) bool {
	a := access(c)
	for _, p := range append(append([]string{}, a.Read...), a.Write...) {
		if path == "/" || p == path || strings.HasPrefix(p, path+"/") {
			return true
		}
	}
	return false
}

// checkRoot finds files in QEMU's root that it should not have. It does not
// look into what is mounted there as a whole.
func checkRoot(t *testing.T, root string, c vmm.Config) {
	t.Helper()
	whole := make(map[string]bool)
	a := access(c)
	for _, p := range append(append([]string{}, a.Read...), a.Write...) {
		whole[p] = true
	}
	err := filepath.WalkDir(root+"/", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := filepath.Join("/", strings.TrimPrefix(path, root))
		if !given(name, c) {
			t.Errorf("qemu's root has %s", name)
		}
		if entry.IsDir() && whole[name] {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// checkMounts finds mounts in QEMU's namespace that it should not have, or that
// it could change.
func checkMounts(t *testing.T, info string, c vmm.Config) {
	t.Helper()
	for line := range strings.Lines(info) {
		fields := strings.Fields(line)
		if len(fields) < 6 {
			t.Fatalf("mountinfo has %q", line)
		}
		point, options := fields[4], strings.Split(fields[5], ",")
		// What is mounted below /usr on this host is there as well.
		below := slices.ContainsFunc(access(c).Read, func(p string) bool { return strings.HasPrefix(point, p+"/") })
		if !given(point, c) && !below || !slices.Contains(options, "ro") || !slices.Contains(options, "nosuid") {
			t.Errorf("qemu has the mount %s", line)
		}
	}
}
