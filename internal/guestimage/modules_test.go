package guestimage

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseModuleInfo(t *testing.T) {
	tests := []struct {
		name, text string
		want       moduleInfo
	}{
		{"empty", "", moduleInfo{}},
		{"no dependency", "license=GPL\x00depends=\x00", moduleInfo{}},
		{"several", "depends=a,b-c\x00name=x\x00", moduleInfo{depends: []string{"a", "b-c"}}},
		{"soft", "softdep=post: p pre: q r\x00softdep=pre: s\x00", moduleInfo{softPre: []string{"q", "r", "s"}}},
		{"without equals sign", "depends\x00softdep", moduleInfo{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(parseModuleInfo(tt.text), tt.want, cmp.AllowUnexported(moduleInfo{})); diff != "" {
				t.Errorf("differs (-got +want):\n%s", diff)
			}
		})
	}
}

func TestModuleName(t *testing.T) {
	tests := map[string]string{
		"9p.ko": "9p", "virtio-rng.ko.xz": "virtio_rng", "a.ko.zst": "a", "a.ko.gz": "a",
		"a.ko.bz2": "", "a.o": "", ".ko": "", "modules.dep": "",
	}
	for file, want := range tests {
		if got, ok := moduleName(file); got != want || ok != (want != "") {
			t.Errorf("moduleName(%q) = %q, %v, want %q", file, got, ok, want)
		}
	}
}

func TestPlanModules(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, dir string)
		want   string // in the error; "" for none
	}{
		{"all there", func(*testing.T, string) {}, ""},
		{"no list of built-in modules", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "modules.builtin")); err != nil {
				t.Fatal(err)
			}
		}, "has no module virtio_pci in "},
		{"dependency missing", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "kernel/net/9p/9pnet.ko.gz")); err != nil {
				t.Fatal(err)
			}
		}, "has no module 9pnet_virtio, 9p in "},
		{"circle", func(t *testing.T, dir string) {
			write(t, testModule(t, "depends=virtio_ring"), dir, "kernel/drivers/virtio/virtio.ko")
		}, "depend on each other: virtio_console -> virtio -> virtio_ring -> virtio"},
		{"not an ELF file", func(t *testing.T, dir string) {
			write(t, []byte("\x7fELF"), dir, "kernel/fs/9p/9p.ko")
		}, "9p.ko: not a kernel module"},
		{"no .modinfo", func(t *testing.T, dir string) {
			write(t, elfFile{typ: 1}.bytes(t), dir, "kernel/fs/9p/9p.ko")
		}, "no .modinfo"},
		{"for another machine", func(t *testing.T, dir string) {
			write(t, elfFile{typ: 1, machine: 183}.bytes(t), dir, "kernel/fs/9p/9p.ko")
		}, "not a kernel module for EM_X86_64"},
		{"optional one is damaged", func(t *testing.T, dir string) {
			write(t, []byte("rubbish"), dir, "kernel/fs/ext4/ext4.ko")
		}, "unknown compression"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := testModules(t, t.TempDir())
			tt.change(t, dir)
			p, err := planModules(dir, testVersion)
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("error %v, want %q in it", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkPlan(t, p)
			if !slices.Contains(p.missing, "virtio_scsi") {
				t.Errorf("missing %v, want virtio_scsi among them", p.missing)
			}
		})
	}
}

// checkPlan makes sure that every module comes after all that it depends on.
func checkPlan(t *testing.T, p plan) {
	t.Helper()
	phases := []phase{phaseBoot, phaseNet, phaseVsock, phaseLazy}
	seen := map[string]phase{}
	for _, m := range p.modules {
		if _, ok := seen[m.name]; ok {
			t.Errorf("%s is there twice", m.name)
		}
		if len(m.data) == 0 {
			t.Errorf("%s is empty", m.name)
		}
		for i, d := range m.deps {
			ph, ok := seen[d]
			if !ok {
				t.Errorf("%s comes before %s, which it depends on", m.name, d)
			}
			if slices.Index(phases, ph) > slices.Index(phases, m.phase) {
				t.Errorf("%s is loaded in phase %s, but %s, which it depends on, in %s", m.name, m.phase, d, ph)
			}
			if slices.Contains(m.deps[:i], d) {
				t.Errorf("%s names %s twice", m.name, d)
			}
		}
		seen[m.name] = m.phase
	}
}

func FuzzReadModuleInfo(f *testing.F) {
	f.Add(testModule(f, "depends=a,b", "softdep=pre: c post: d", "alias=x"))
	f.Add(gzipped(f, testModule(f, "depends=a")))
	f.Add(zstdCompressed(f, testModule(f, "depends=a")))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, file []byte) {
		data, err := decompress(file, 64<<10)
		if err != nil {
			return
		}
		info, err := readModuleInfo(data)
		if err != nil {
			return
		}
		for _, name := range slices.Concat(info.depends, info.softPre) {
			if name == "" || strings.ContainsAny(name, "\x00,") && !slices.Contains(info.softPre, name) {
				t.Errorf("dependency %q", name)
			}
		}
	})
}

func FuzzHasNote(f *testing.F) {
	f.Add(testNote(notePVH))
	f.Add(append(testNote(1), testNote(2)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		if hasNote(data, "Xen\x00", notePVH) && !strings.Contains(string(data), "Xen") {
			t.Error("found a note that is not there")
		}
	})
}
