package machine

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/resources"
	"github.com/seed-efd44b36/kata/internal/vmm"
)

func TestType(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		setting string
		microvm bool
		nics    int
		want    string
	}{
		{"auto", true, 1, "microvm"},
		{"auto", true, vmm.MicrovmNICs, "microvm"},
		{"auto", true, vmm.MicrovmNICs + 1, "q35"},
		{"auto", false, 1, "q35"},
		{"q35", true, 1, "q35"},
		{"microvm", true, 9, "microvm"}, // which the driver refuses
	} {
		if got := Type(tt.setting, guestimage.Kernel{Microvm: tt.microvm}, tt.nics); got != tt.want {
			t.Errorf("%+v: got %s", tt, got)
		}
	}
}

func TestUse(t *testing.T) {
	t.Parallel()
	there := t.TempDir()
	for _, tt := range []struct {
		setting, path string
		want          bool
	}{
		{"auto", there, true},
		{"auto", filepath.Join(there, "not"), false},
		{"on", filepath.Join(there, "not"), true},
		{"off", there, false},
	} {
		if got := Use(tt.setting, tt.path); got != tt.want {
			t.Errorf("%+v: got %v", tt, got)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	h := config.Hypervisor{Path: "/qemu", MachineType: "auto", KernelParams: "mine=1", Vsock: "on"}
	c := Config(h, guestimage.Image{Initrd: "/initrd"}, vmm.AccelKVM, resources.VM{CPUs: 3, MemoryMiB: 700})
	if c.Binary != "/qemu" || c.Initrd != "/initrd" || c.CPUs != 3 || c.MemoryMiB != 700 || !strings.HasSuffix(c.KernelParams, " mine=1") || c.VsockCID != 0 {
		t.Errorf("got %+v", c)
	}
	if err := AddVsock(&c, h); err != nil {
		t.Fatal(err)
	}
	if c.VsockCID < 3 || c.VsockCID > 1<<31 || !strings.HasSuffix(c.KernelParams, " mine=1 kata.link=vsock") {
		t.Errorf("got %+v", c)
	}
}

func TestClass(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		cpus, memory, host, wantCPUs, wantMemory int
	}{
		{1, 512, 2, 1, 512},
		{1, 128, 2, 1, 256},
		{2, 513, 2, 2, 1024},
		{3, 640, 8, 4, 1024},
		{5, 4096, 6, 6, 4096},
		{4, 256, 2, 4, 256}, // as configured
	} {
		got := class(resources.VM{CPUs: tt.cpus, MemoryMiB: tt.memory}, tt.host)
		if got.CPUs != tt.wantCPUs || got.MemoryMiB != tt.wantMemory {
			t.Errorf("%+v: got %+v", tt, got)
		}
	}
}
