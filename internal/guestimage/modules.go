package guestimage

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// maxModule bounds the uncompressed size of one module in bytes.
const maxModule = 32 << 20

// phase says when the agent loads a module.
type phase string

const (
	phaseBoot  phase = "boot"  // at once: the link and the shared directory
	phaseNet   phase = "net"   // when a network interface is set up
	phaseVsock phase = "vsock" // when the link is vsock
	phaseLazy  phase = "lazy"  // when something asks for it by name
)

// wanted is what a guest may need of its kernel, in the order in which the
// phases come. A kernel without a required one cannot be used.
var wanted = []struct {
	phase    phase
	name     string
	required bool
}{
	{phaseBoot, "virtio_pci", true},
	{phaseBoot, "virtio_console", true},
	{phaseBoot, "9pnet_virtio", true},
	{phaseBoot, "9p", true},
	{phaseNet, "virtio_net", true},
	{phaseVsock, "vmw_vsock_virtio_transport", false},
	{phaseLazy, "overlay", true},
	{phaseLazy, "virtio_scsi", false},
	{phaseLazy, "sd_mod", false},
	{phaseLazy, "virtio_blk", false},
	{phaseLazy, "virtio_rng", false},
	{phaseLazy, "virtio_balloon", false},
	{phaseLazy, "virtio_mmio", false},
	{phaseLazy, "virtiofs", false},
	{phaseLazy, "fuse", false},
	{phaseLazy, "ext4", false},
	{phaseLazy, "erofs", false},
	{phaseLazy, "squashfs", false},
	{phaseLazy, "loop", false},
	{phaseLazy, "tun", false},
	{phaseLazy, "veth", false},
	{phaseLazy, "dummy", false},
	{phaseLazy, "bridge", false},
	{phaseLazy, "br_netfilter", false},
	{phaseLazy, "ip_tables", false},
	{phaseLazy, "iptable_filter", false},
	{phaseLazy, "iptable_nat", false},
	{phaseLazy, "ip6_tables", false},
	{phaseLazy, "ip6table_filter", false},
	{phaseLazy, "ip6table_nat", false},
	{phaseLazy, "xt_conntrack", false},
	{phaseLazy, "xt_MASQUERADE", false},
	{phaseLazy, "xt_comment", false},
	{phaseLazy, "xt_multiport", false},
	{phaseLazy, "xt_addrtype", false},
	{phaseLazy, "xt_nat", false},
	{phaseLazy, "nf_tables", false},
	{phaseLazy, "nft_compat", false},
	{phaseLazy, "nft_ct", false},
	{phaseLazy, "nft_masq", false},
	{phaseLazy, "nft_nat", false},
	{phaseLazy, "nft_chain_nat", false},
	{phaseLazy, "nft_reject_inet", false},
}

// module is one that goes into the guest.
type module struct {
	phase phase
	name  string
	// deps are all modules that must be loaded before, in load order.
	deps []string
	data []byte
}

// plan is all modules of a guest, each behind those it depends on.
type plan struct {
	version string
	modules []module
	// missing are the optional modules that the kernel does not have.
	missing []string
	// files are the host's files that were read.
	files []string
}

// path is where a module is in the guest.
func (p plan) path(name string) string {
	return "/lib/modules/" + p.version + "/" + name + ".ko"
}

// list returns the text of the guest's /etc/kata/modules: a line per module in
// load order, with its phase, name, path and the names of what it depends on.
func (p plan) list() []byte {
	var out bytes.Buffer
	for _, m := range p.modules {
		fmt.Fprintf(&out, "%s %s %s", m.phase, m.name, p.path(m.name))
		for _, d := range m.deps {
			fmt.Fprintf(&out, " %s", d)
		}
		out.WriteByte('\n')
	}
	return out.Bytes()
}

// planModules finds the wanted modules, and those they depend on, in the
// modules directory dir (…/lib/modules/VERSION) of a kernel.
func planModules(dir, version string) (plan, error) {
	tree, err := readModuleTree(dir)
	if err != nil {
		return plan{}, err
	}
	p := plan{version: version}
	var missing []string
	for _, w := range wanted {
		err := tree.add(&p, w.phase, w.name, nil)
		switch {
		case err == nil:
		case !errors.Is(err, fs.ErrNotExist):
			return plan{}, err
		case w.required:
			missing = append(missing, w.name)
		default:
			p.missing = append(p.missing, w.name)
		}
	}
	if missing != nil {
		return plan{}, fmt.Errorf("kernel %s has no module %s in %s", version, strings.Join(missing, ", "), dir)
	}
	return p, nil
}

// moduleTree is an index of a modules directory.
type moduleTree struct {
	dir     string
	builtin map[string]bool
	files   map[string]string // by module name, absolute
}

// readModuleTree indexes the files themselves: packages do not carry
// modules.dep, which their installation makes.
func readModuleTree(dir string) (*moduleTree, error) {
	t := &moduleTree{dir: dir, builtin: map[string]bool{}, files: map[string]string{}}
	data, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read list of built-in modules: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if name, ok := moduleName(path.Base(strings.TrimSpace(line))); ok {
			t.builtin[name] = true
		}
	}
	err = filepath.WalkDir(filepath.Join(dir, "kernel"), func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := moduleName(d.Name()); ok && d.Type().IsRegular() {
			t.files[name] = file
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list kernel modules: %w", err)
	}
	return t, nil
}

// moduleName returns the name of the module in a file, as the kernel spells it.
func moduleName(file string) (string, bool) {
	name, ext, ok := strings.Cut(file, ".ko")
	if !ok || name == "" || !slices.Contains([]string{"", ".gz", ".xz", ".zst"}, ext) {
		return "", false
	}
	return canonical(name), true
}

// canonical replaces dashes: the kernel treats them as underscores.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// add appends a module to the plan, after those it depends on. A module that is
// built in or already there is left alone. above are the modules that are
// being added, to find a circle.
func (t *moduleTree) add(p *plan, ph phase, name string, above []string) error {
	name = canonical(name)
	if t.builtin[name] || slices.ContainsFunc(p.modules, func(m module) bool { return m.name == name }) {
		return nil
	}
	if slices.Contains(above, name) {
		return fmt.Errorf("modules depend on each other: %s", strings.Join(append(above, name), " -> "))
	}
	file, ok := t.files[name]
	if !ok {
		return fmt.Errorf("module %s: %w", name, fs.ErrNotExist)
	}
	data, err := readModule(file)
	if err != nil {
		return fmt.Errorf("module %s: %w", file, err)
	}
	info, err := readModuleInfo(data)
	if err != nil {
		return fmt.Errorf("module %s: %w", file, err)
	}
	m := module{phase: ph, name: name, data: data}
	for _, soft := range info.softPre {
		if dep, ok := t.softDep(soft); ok {
			info.depends = append(info.depends, dep)
		}
	}
	above = append(slices.Clone(above), name)
	for _, dep := range info.depends {
		dep = canonical(dep)
		if err := t.add(p, ph, dep, above); err != nil {
			return err
		}
		if i := slices.IndexFunc(p.modules, func(m module) bool { return m.name == dep }); i >= 0 {
			for _, d := range append(slices.Clone(p.modules[i].deps), dep) {
				if !slices.Contains(m.deps, d) {
					m.deps = append(m.deps, d)
				}
			}
		}
	}
	p.modules = append(p.modules, m)
	p.files = append(p.files, file)
	return nil
}

// softDep finds the module of a soft dependency, which may be an alias of the
// kind "crypto-ALGORITHM". One that is not there is left out: that is what soft
// means.
func (t *moduleTree) softDep(name string) (string, bool) {
	base := strings.TrimPrefix(name, "crypto-")
	for _, n := range []string{canonical(name), canonical(base) + "_generic", canonical(base)} {
		if t.builtin[n] || t.files[n] != "" {
			return n, true
		}
	}
	return "", false
}

// readModule returns the uncompressed module in file: the agent loads it as it
// is.
func readModule(file string) ([]byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return decompress(data, maxModule)
}

// moduleInfo is what a module says of itself that matters to the load order.
type moduleInfo struct {
	depends, softPre []string
}

// readModuleInfo reads the .modinfo section of a module.
func readModuleInfo(data []byte) (moduleInfo, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return moduleInfo{}, fmt.Errorf("not a kernel module: %w", err)
	}
	if f.Machine != machine || f.Type != elf.ET_REL {
		return moduleInfo{}, fmt.Errorf("not a kernel module for %v", machine)
	}
	section := f.Section(".modinfo")
	if section == nil || section.Size > uint64(len(data)) {
		return moduleInfo{}, errors.New("not a kernel module: no .modinfo section")
	}
	text, err := section.Data()
	if err != nil {
		return moduleInfo{}, fmt.Errorf("read .modinfo: %w", err)
	}
	return parseModuleInfo(string(text)), nil
}

// parseModuleInfo parses the zero-separated KEY=VALUE strings of .modinfo.
func parseModuleInfo(text string) moduleInfo {
	var info moduleInfo
	for entry := range strings.SplitSeq(text, "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "depends":
			info.depends = append(info.depends, strings.FieldsFunc(value, func(r rune) bool { return r == ',' })...)
		case "softdep":
			pre := false
			for word := range strings.FieldsSeq(value) {
				switch {
				case strings.HasSuffix(word, ":"):
					pre = word == "pre:"
				case pre:
					info.softPre = append(info.softPre, word)
				}
			}
		}
	}
	return info
}
