package runflags

import (
	"errors"
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/docker/go-units"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultNetwork is the name of the network that containers join unless they
// are told otherwise. NoNetwork is the name for none.
const (
	DefaultNetwork = "kata"
	NoNetwork      = "none"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// minMemory in bytes is Docker's: less than that starts nothing.
	minMemory = 6 << 20
	// cpuPeriod in microseconds, the usual one.
	cpuPeriod = 100000
	maxCPUs   = 1024
)

// Files reads files of the root file system, as a process in the container
// would find them. image.Tree does it.
type Files interface {
	// ReadFile returns at most limit bytes, fs.ErrNotExist when there is no
	// such file, and another error when it is larger or no regular file.
	ReadFile(name string, limit int64) ([]byte, error)
}

// Input is what a plan depends on besides the flags.
type Input struct {
	// ID of the container.
	ID string
	// Image is the image's configuration; zero for a plain root directory.
	Image imagespec.ImageConfig
	// Args follow the image's name on the command line.
	Args []string
	// Files of the root file system.
	Files Files
	// Root is what the spec gets as the root file system's path.
	Root string
	// Dir is the container's own directory. Host name, hosts and resolver
	// files are mounted from there; see [WriteNetFiles].
	Dir string
	// VolumeDir holds the named volumes.
	VolumeDir string
	// LookupEnv is os.LookupEnv: for variables that are passed on.
	LookupEnv func(string) (string, bool)
	// BlockDevice looks at a block device of the host; of the path in the
	// answer nothing is used.
	BlockDevice func(path string) (specs.LinuxDevice, error)
}

// Plan is what a `kata run` is going to do.
type Plan struct {
	// Spec is the container's OCI runtime spec.
	Spec *specs.Spec
	// Hostname of the sandbox.
	Hostname string
	// Network to join, [NoNetwork] for none, and the ports to forward to it.
	Network string
	Ports   []Port
	// Nameservers that replace the network's, if any.
	Nameservers []string
	// ShmBytes is the size of /dev/shm.
	ShmBytes uint64
	// Sysctls are for the whole virtual machine, those of Spec for the
	// container's own namespaces.
	Sysctls map[string]string
	// StopSignal as a number.
	StopSignal int
	// Volumes are directories to be made before the start.
	Volumes []Volume
}

// Plan checks all flags and combines them with the image's configuration. It
// reports all problems at once.
func (f *Flags) Plan(in Input) (*Plan, error) {
	p := &Plan{Spec: baseSpec(in.Root), Network: f.Network}
	var errs []error
	check := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	proc := p.Spec.Process
	proc.Terminal = f.TTY
	p.Spec.Root.Readonly = f.ReadOnly
	p.Hostname = f.Hostname
	if p.Hostname == "" {
		p.Hostname = in.ID[:min(12, len(in.ID))]
	}
	check(checkHostname(p.Hostname))
	p.Spec.Hostname = p.Hostname

	var err error
	proc.Args, err = f.command(in)
	check(err)
	proc.Cwd, err = workdir(f.Workdir, in.Image.WorkingDir)
	check(err)
	proc.User, err = ResolveUser(in.Files, firstOf(f.User, in.Image.User), f.GroupAdd)
	check(err)
	proc.Env, err = f.environment(in, p.Hostname)
	check(err)
	p.StopSignal, err = ParseSignal(firstOf(f.StopSignal, in.Image.StopSignal, "SIGTERM"))
	check(err)

	check(f.limits(p))
	check(f.network(p))
	check(f.sysctls(p))
	check(f.mounts(in, p))
	check(f.devices(in, p.Spec.Linux))
	check(f.security(p.Spec))
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p, nil
}

// command combines entry point and arguments as Docker does: an entry point
// that is given makes the image's arguments void.
func (f *Flags) command(in Input) ([]string, error) {
	entry, args := in.Image.Entrypoint, in.Image.Cmd
	if f.changed("entrypoint") || f.Entrypoint != "" {
		entry, args = nil, nil
		if f.Entrypoint != "" {
			entry = []string{f.Entrypoint}
		}
	}
	if len(in.Args) > 0 {
		args = in.Args
	}
	all := slices.Concat(entry, args)
	if len(all) == 0 || all[0] == "" {
		return nil, errors.New("no command: the image names none, so give one after the image")
	}
	for _, a := range all {
		if strings.ContainsRune(a, 0) {
			return nil, fmt.Errorf("command: argument %q contains a zero byte", a)
		}
	}
	return all, nil
}

func workdir(flag, image string) (string, error) {
	dir := firstOf(flag, image, "/")
	if !path.IsAbs(dir) {
		return "", fmt.Errorf("--workdir %q: not an absolute path", dir)
	}
	return path.Clean(dir), nil
}

// Lengths are counted beside the expressions: to compile counted repetitions would
// take the program 0.4 ms at each start.
var (
	hostnameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9-]*(\.[a-zA-Z0-9][a-zA-Z0-9-]*)*$`)
	nameForm     = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)
)

// isName reports whether s can be the name of a volume or a network.
func isName(s string) bool { return len(s) <= 128 && nameForm.MatchString(s) }

func checkHostname(name string) error {
	long := slices.ContainsFunc(strings.Split(name, "."), func(label string) bool { return len(label) > 63 })
	if len(name) > 64 || long || !hostnameForm.MatchString(name) {
		return fmt.Errorf("--hostname %q: want at most 64 letters, digits, dots and hyphens", name)
	}
	return nil
}

func (f *Flags) limits(p *Plan) error {
	var errs []error
	res := p.Spec.Linux.Resources
	if f.Memory != "" {
		n, err := units.RAMInBytes(f.Memory)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("--memory %q: want a size such as 256m: %w", f.Memory, err))
		case n < minMemory:
			errs = append(errs, fmt.Errorf("--memory %q: the least is %dm", f.Memory, minMemory>>20))
		default:
			res.Memory = &specs.LinuxMemory{Limit: &n}
		}
	}
	switch {
	case f.CPUs == 0:
	case !(f.CPUs >= 0.01 && f.CPUs <= maxCPUs): // also refuses NaN
		errs = append(errs, fmt.Errorf("--cpus %v: want a number from 0.01 to %d", f.CPUs, maxCPUs))
	default:
		quota, period := int64(math.Round(f.CPUs*cpuPeriod)), uint64(cpuPeriod)
		res.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	switch {
	case f.PidsLimit < -1:
		errs = append(errs, fmt.Errorf("--pids-limit %d: want a number above 0, or -1 for none", f.PidsLimit))
	case f.PidsLimit > 0:
		res.Pids = &specs.LinuxPids{Limit: &f.PidsLimit}
	}
	shm, err := units.RAMInBytes(f.ShmSize)
	if err != nil || shm <= 0 {
		errs = append(errs, fmt.Errorf("--shm-size %q: want a size such as 64m", f.ShmSize))
	} else {
		p.ShmBytes = uint64(shm)
	}
	errs = append(errs, f.ulimits(p.Spec.Process))
	return errors.Join(errs...)
}

func (f *Flags) ulimits(proc *specs.Process) error {
	var errs []error
	for _, s := range f.Ulimits {
		u, err := units.ParseUlimit(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("--ulimit %q: %w", s, err))
			continue
		}
		r := specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)}
		i := slices.IndexFunc(proc.Rlimits, func(o specs.POSIXRlimit) bool { return o.Type == r.Type })
		if i >= 0 {
			proc.Rlimits[i] = r
		} else {
			proc.Rlimits = append(proc.Rlimits, r)
		}
	}
	return errors.Join(errs...)
}

var sysctlForm = regexp.MustCompile(`^[a-zA-Z0-9_-]+([./][a-zA-Z0-9_*-]+)+$`)

// sysctls divides the parameters into those of the container's IPC namespace
// and those of the network, which is the virtual machine's.
func (f *Flags) sysctls(p *Plan) error {
	var errs []error
	for _, s := range f.Sysctls {
		name, value, ok := strings.Cut(s, "=")
		if !ok || !sysctlForm.MatchString(name) || strings.ContainsAny(value, "\x00\n") {
			errs = append(errs, fmt.Errorf("--sysctl %q: want NAME=VALUE", s))
			continue
		}
		switch {
		case ownNamespace(name):
			p.Spec.Linux.Sysctl[name] = value
		case strings.HasPrefix(strings.ReplaceAll(name, "/", "."), "net."):
			p.Sysctls[name] = value
		default:
			errs = append(errs, fmt.Errorf("--sysctl %q: a container has net.*, kernel.msg*, kernel.shm*, kernel.sem and fs.mqueue.* of its own, no others", s))
		}
	}
	return errors.Join(errs...)
}

func ownNamespace(name string) bool {
	name = strings.ReplaceAll(name, "/", ".")
	for _, prefix := range []string{"fs.mqueue.", "kernel.msg", "kernel.shm"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return name == "kernel.sem"
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
