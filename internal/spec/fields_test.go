package spec

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// class says what becomes of a field of the spec.
type class string

const (
	inGuest class = "enforced in the guest"
	onHost  class = "for the host alone"
	refused class = "refused"
	warned  class = "left out with a warning"
	moved   class = "replaced by the guest's own value"
)

// classes holds every field of the OCI runtime spec to its class. A struct that
// is listed stands for all below it, unless a field of it is listed, too.
func classes() map[string]class {
	return map[string]class{
		"ociVersion":  inGuest,
		"process":     inGuest,
		"hostname":    inGuest,
		"domainname":  inGuest,
		"annotations": onHost,

		"process.commandLine":     refused,
		"process.user.username":   refused,
		"process.apparmorProfile": warned,
		"process.selinuxLabel":    warned,
		"process.execCPUAffinity": refused,

		"root.path":     moved,
		"root.readonly": inGuest,

		"mounts.destination": inGuest,
		"mounts.type":        inGuest,
		"mounts.source":      inGuest, // of a bind: moved, see TestTranslate
		"mounts.options":     inGuest,
		"mounts.uidMappings": refused,
		"mounts.gidMappings": refused,

		"hooks.prestart":        onHost,
		"hooks.createRuntime":   onHost,
		"hooks.createContainer": refused,
		"hooks.startContainer":  inGuest,
		"hooks.poststart":       onHost,
		"hooks.poststop":        onHost,

		"linux.uidMappings":       refused,
		"linux.gidMappings":       refused,
		"linux.sysctl":            inGuest,
		"linux.cgroupsPath":       moved,
		"linux.namespaces.type":   inGuest,
		"linux.namespaces.path":   onHost,
		"linux.devices":           inGuest,
		"linux.netDevices":        refused,
		"linux.seccomp":           inGuest,
		"linux.rootfsPropagation": inGuest,
		"linux.maskedPaths":       inGuest,
		"linux.readonlyPaths":     inGuest,
		"linux.mountLabel":        warned,
		"linux.intelRdt":          refused,
		"linux.memoryPolicy":      refused,
		"linux.personality":       inGuest,
		"linux.timeOffsets":       inGuest,

		"linux.seccomp.listenerPath":     refused,
		"linux.seccomp.listenerMetadata": refused,

		"linux.resources.devices":        inGuest,
		"linux.resources.memory":         inGuest,
		"linux.resources.pids":           inGuest,
		"linux.resources.hugepageLimits": inGuest,
		"linux.resources.unified":        inGuest,
		"linux.resources.network":        refused,
		"linux.resources.rdma":           refused,

		"linux.resources.cpu":                 inGuest,
		"linux.resources.cpu.cpus":            onHost,
		"linux.resources.cpu.mems":            onHost,
		"linux.resources.cpu.realtimeRuntime": refused,
		"linux.resources.cpu.realtimePeriod":  refused,

		"linux.resources.blockIO.weight":                  inGuest,
		"linux.resources.blockIO.leafWeight":              refused,
		"linux.resources.blockIO.weightDevice":            refused,
		"linux.resources.blockIO.throttleReadBpsDevice":   refused,
		"linux.resources.blockIO.throttleWriteBpsDevice":  refused,
		"linux.resources.blockIO.throttleReadIOPSDevice":  refused,
		"linux.resources.blockIO.throttleWriteIOPSDevice": refused,

		"solaris": refused,
		"windows": refused,
		"vm":      refused,
		"zos":     refused,
		"freebsd": refused,
	}
}

// samples are values of fields that not every value is allowed for.
func samples() map[string]string {
	return map[string]string{
		"ociVersion":                  "1.1.0",
		"process.cwd":                 "/tmp",
		"process.rlimits.type":        "RLIMIT_CORE",
		"mounts.destination":          "/x",
		"mounts.type":                 "tmpfs",
		"hooks.prestart.path":         "/x",
		"hooks.createRuntime.path":    "/x",
		"hooks.poststart.path":        "/x",
		"hooks.poststop.path":         "/x",
		"hooks.startContainer.path":   "/bin/x",
		"linux.namespaces.path":       "/run/netns/x",
		"linux.namespaces.type":       "network",
		"linux.devices.path":          "/dev/tty",
		"linux.devices.type":          "c",
		"linux.rootfsPropagation":     "private",
		"linux.maskedPaths":           "/x",
		"linux.readonlyPaths":         "/x",
		"linux.resources.unified":     "memory.high",
		"linux.timeOffsets":           "boottime",
		"linux.personality.domain":    "LINUX",
		"linux.seccomp.architectures": "SCMP_ARCH_X86_64",
	}
}

func sampleNumber(path string) int64 {
	switch path {
	case "linux.devices.major":
		return 5
	case "linux.devices.minor":
		return 0
	}
	return 1
}

// TestEveryField sets one field of the spec after the other and checks that it
// gets the treatment it is listed for. A new version of the spec with new
// fields fails it.
func TestEveryField(t *testing.T) {
	table := classes()
	used := map[string]bool{}
	walk(reflect.TypeFor[specs.Spec](), "", func(path string, fill func(reflect.Value)) {
		key := path
		for table[key] == "" {
			i := strings.LastIndexByte(key, '.')
			if i < 0 {
				t.Errorf("field %s has no class: decide what becomes of it", path)
				return
			}
			key = key[:i]
		}
		used[key] = true
		t.Run(path, func(t *testing.T) { checkField(t, path, table[key], fill) })
	})
	for key := range table {
		if !used[key] {
			t.Errorf("field %s is listed, but the spec has none", key)
		}
	}
}

func checkField(t *testing.T, path string, want class, fill func(reflect.Value)) {
	s := base()
	if strings.HasPrefix(path, "linux.namespaces") {
		s.Linux.Namespaces = s.Linux.Namespaces[:0]
		for _, typ := range []specs.LinuxNamespaceType{"pid", "ipc", "uts", "mount"} {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: typ})
		}
	}
	fill(reflect.ValueOf(s).Elem())
	if h := s.Hooks; h != nil && len(h.StartContainer) > 0 && h.StartContainer[0].Path == "" {
		h.StartContainer[0].Path = "/bin/x"
	}
	plan, err := Translate(s, options())
	if want == refused {
		if !errors.Is(err, ErrUnsupported) {
			t.Fatalf("%s: got %v, want ErrUnsupported", want, err)
		}
		field, _, _ := strings.Cut(path, ".")
		if !strings.Contains(err.Error(), field) {
			t.Errorf("the error does not name the field: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatalf("%s, but: %v", want, err)
	}
	// What the guest gets beyond an untouched spec.
	unset, err := Translate(base(), options())
	if err != nil {
		t.Fatal(err)
	}
	same := asJSON(t, plan.Guest) == asJSON(t, unset.Guest)
	switch want {
	case inGuest:
		if same && path != "linux.namespaces.type" {
			t.Errorf("the guest does not get it: %s", asJSON(t, s))
		}
	case onHost, moved, warned:
		if strings.Contains(asJSON(t, plan.Guest), "/run/netns/x") || !same && !strings.HasPrefix(path, "linux.") {
			t.Errorf("the guest gets it: %s", asJSON(t, plan.Guest))
		}
	}
	if (len(plan.Warnings) > 0) != (want == warned) {
		t.Errorf("warnings: %q, but the field is %s", plan.Warnings, want)
	}
}

func asJSON(t *testing.T, s *specs.Spec) string {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// walk calls visit for each field below typ, as deep as there are classes, with
// a function that sets it in a spec.
func walk(typ reflect.Type, path string, visit func(path string, set func(reflect.Value))) {
	for f := range typ.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		p := strings.TrimPrefix(path+"."+name, ".")
		ft := f.Type
		for ft.Kind() == reflect.Pointer || ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		if ft.Kind() == reflect.Struct && (classes()[p] == "" || classes()[p] == inGuest || hasDeeper(p)) {
			walk(ft, p, visit)
			continue
		}
		visit(p, func(root reflect.Value) { setPath(root, p) })
	}
}

// hasDeeper tells whether fields below path have classes of their own.
func hasDeeper(path string) bool {
	for key := range classes() {
		if strings.HasPrefix(key, path+".") {
			return true
		}
	}
	return false
}

// setPath makes the field at path, and all on the way to it, something other
// than zero. On the way, the siblings that the spec requires are set, too.
func setPath(v reflect.Value, path string) {
	full := path
	for path != "" {
		name, rest, _ := strings.Cut(path, ".")
		v = reflect.Indirect(open(v))
		f := fieldByJSON(v, name)
		if rest == "" {
			fillValue(f, full)
			fillSiblings(v, full)
			return
		}
		v, path = f, rest
	}
}

// open makes a value that has fields: the pointer's target, the slice's last
// new element. Maps occur at leaves only.
func open(v reflect.Value) reflect.Value {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		return open(v.Elem())
	case reflect.Slice:
		v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
		return open(v.Index(v.Len() - 1))
	default:
		return v
	}
}

func fieldByJSON(v reflect.Value, name string) reflect.Value {
	for i := range v.NumField() {
		if tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ","); tag == name {
			return v.Field(i)
		}
	}
	for i := range v.NumField() {
		if v.Type().Field(i).Anonymous {
			if f := fieldByJSON(v.Field(i), name); f.IsValid() {
				return f
			}
		}
	}
	return reflect.Value{}
}

// fillSiblings sets what its parent cannot do without.
func fillSiblings(parent reflect.Value, path string) {
	i := strings.LastIndexByte(path, '.')
	if i < 0 {
		return
	}
	for _, name := range map[string][]string{
		"mounts":              {"destination", "type"},
		"linux.namespaces":    {"type"},
		"linux.devices":       {"path", "type", "major"},
		"process.rlimits":     {"type", "hard"},
		"hooks.prestart":      {"path"},
		"hooks.createRuntime": {"path"},
		"hooks.poststart":     {"path"},
		"hooks.poststop":      {"path"},
	}[path[:i]] {
		if f := fieldByJSON(parent, name); f.IsZero() {
			fillValue(f, path[:i]+"."+name)
		}
	}
}

func fillValue(v reflect.Value, path string) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillValue(v.Elem(), path)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
				fillValue(v.Field(i), path+"."+name)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fillValue(v.Index(0), path)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, elem := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fillValue(key, path)
		fillValue(elem, path)
		v.SetMapIndex(key, elem)
	case reflect.String:
		s := samples()[path]
		if s == "" {
			s = "x"
		}
		v.SetString(s)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(sampleNumber(path))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(sampleNumber(path)))
	}
}
