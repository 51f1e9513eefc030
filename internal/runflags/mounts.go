package runflags

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Files of [Input.Dir] that are mounted into the container.
const (
	hostnameFile = "hostname"
	hostsFile    = "hosts"
	resolvFile   = "resolv.conf"
)

// Volume is a directory of the host that a container needs to be there.
type Volume struct {
	// Path on the host.
	Path string
	// Name of a named volume, "" for a directory that was given by its path.
	Name string
	// Anonymous volumes belong to the container and go with it.
	Anonymous bool
	// Target is the path in the container. The image's content there is
	// copied into a new, empty volume, but not into a plain directory.
	Target string
}

// mounts adds volumes, tmpfs and the files of the network. Mounts are sorted by
// depth, so that none hides another.
func (f *Flags) mounts(in Input, p *Plan) error {
	var errs []error
	var own []specs.Mount
	taken := map[string]string{}
	add := func(m specs.Mount, flag string) bool {
		if by, ok := taken[m.Destination]; ok {
			errs = append(errs, fmt.Errorf("%s: %s is mounted by %s already", flag, m.Destination, by))
			return false
		}
		taken[m.Destination] = flag
		own = append(own, m)
		return true
	}
	for _, s := range f.Volumes {
		flag := fmt.Sprintf("--volume %q", s)
		m, v, err := parseVolume(s, in)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", flag, err))
			continue
		}
		if add(m, flag) && v.Path != "" {
			p.Volumes = append(p.Volumes, v)
		}
	}
	for _, s := range f.Tmpfs {
		flag := fmt.Sprintf("--tmpfs %q", s)
		m, err := parseTmpfs(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", flag, err))
			continue
		}
		add(m, flag)
	}
	for target := range in.Image.Volumes {
		target, err := checkTarget(target)
		if err != nil {
			errs = append(errs, fmt.Errorf("volume of the image: %w", err))
			continue
		}
		if _, ok := taken[target]; ok {
			continue
		}
		sum := sha256.Sum256([]byte(target))
		v := Volume{Path: filepath.Join(in.Dir, "volumes", hex.EncodeToString(sum[:8])), Anonymous: true, Target: target}
		add(bind(v.Path, target, false), "volume of the image")
		p.Volumes = append(p.Volumes, v)
	}
	shm := specs.Mount{
		Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
		Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", p.ShmBytes)},
	}
	p.Spec.Mounts = append(p.Spec.Mounts, shm)
	if in.Dir != "" {
		for file, target := range map[string]string{hostnameFile: "/etc/hostname", hostsFile: "/etc/hosts", resolvFile: "/etc/resolv.conf"} {
			if _, ok := taken[target]; !ok {
				own = append(own, bind(filepath.Join(in.Dir, file), target, false))
			}
		}
	}
	// What was asked for replaces what is there by default.
	p.Spec.Mounts = slices.DeleteFunc(p.Spec.Mounts, func(m specs.Mount) bool {
		_, ok := taken[m.Destination]
		return ok
	})
	slices.SortFunc(own, func(a, b specs.Mount) int {
		if d := strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/"); d != 0 {
			return d
		}
		return strings.Compare(a.Destination, b.Destination)
	})
	p.Spec.Mounts = append(p.Spec.Mounts, own...)
	slices.SortFunc(p.Volumes, func(a, b Volume) int { return strings.Compare(a.Target, b.Target) })
	return errors.Join(errs...)
}

func bind(source, target string, readonly bool) specs.Mount {
	m := specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "rprivate"}}
	if readonly {
		m.Options = append(m.Options, "rro")
	}
	return m
}

// parseVolume reads SOURCE:TARGET[:OPTIONS] or TARGET. The volume has no path
// when there is nothing to be made.
func parseVolume(s string, in Input) (specs.Mount, Volume, error) {
	parts := strings.Split(s, ":")
	var source, target, options string
	switch len(parts) {
	case 1:
		target = parts[0]
	case 2:
		source, target = parts[0], parts[1]
	case 3:
		source, target, options = parts[0], parts[1], parts[2]
	default:
		return specs.Mount{}, Volume{}, errors.New("want SOURCE:PATH[:ro]")
	}
	if strings.ContainsRune(s, 0) {
		return specs.Mount{}, Volume{}, errors.New("contains a zero byte")
	}
	target, err := checkTarget(target)
	if err != nil {
		return specs.Mount{}, Volume{}, err
	}
	readonly := false
	if options != "" {
		for o := range strings.SplitSeq(options, ",") {
			switch o {
			case "ro":
				readonly = true
			case "rw", "z", "Z", "rprivate", "private", "nocopy":
				// z and Z label files for a security module on the host that
				// keeps containers from them; the guest has none.
			default:
				return specs.Mount{}, Volume{}, fmt.Errorf("unknown option %q; want ro or rw", o)
			}
		}
	}
	v := Volume{Target: target}
	switch {
	case len(parts) == 1:
		sum := sha256.Sum256([]byte(target))
		v.Path, v.Anonymous = filepath.Join(in.Dir, "volumes", hex.EncodeToString(sum[:8])), true
	case strings.HasPrefix(source, "/"), strings.HasPrefix(source, "."):
		abs, err := filepath.Abs(source)
		if err != nil {
			return specs.Mount{}, Volume{}, err
		}
		source = abs
		if _, err := os.Stat(source); errors.Is(err, fs.ErrNotExist) {
			v.Path = source // to be made, as Docker does
		} else if err != nil {
			return specs.Mount{}, Volume{}, err
		}
		return bind(source, target, readonly), v, nil
	case isName(source):
		v.Path, v.Name = filepath.Join(in.VolumeDir, source, "_data"), source
	default:
		return specs.Mount{}, Volume{}, fmt.Errorf("%q is neither a path nor the name of a volume", source)
	}
	return bind(v.Path, target, readonly), v, nil
}

// checkTarget cleans a path in the container.
func checkTarget(target string) (string, error) {
	if !path.IsAbs(target) || strings.ContainsRune(target, 0) {
		return "", fmt.Errorf("%q is not an absolute path in the container", target)
	}
	target = path.Clean(target)
	if target == "/" {
		return "", errors.New("the root directory cannot be mounted over")
	}
	for _, dir := range []string{"/proc", "/sys"} {
		if target == dir || strings.HasPrefix(target, dir+"/") {
			return "", fmt.Errorf("%q: nothing can be mounted below %s", target, dir)
		}
	}
	return target, nil
}

var tmpfsOption = regexp.MustCompile(`^(rw|ro|suid|nosuid|exec|noexec|dev|nodev|noatime|relatime|strictatime|size=[0-9]+[kKmMgG%]?|mode=[0-7]{1,4}|uid=[0-9]+|gid=[0-9]+|nr_inodes=[0-9]+[kKmMgG]?)$`)

// parseTmpfs reads PATH[:OPTIONS]. The defaults are Docker's.
func parseTmpfs(s string) (specs.Mount, error) {
	target, options, _ := strings.Cut(s, ":")
	target, err := checkTarget(target)
	if err != nil {
		return specs.Mount{}, err
	}
	m := specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: []string{"noexec", "nosuid", "nodev"}}
	if options == "" {
		return m, nil
	}
	for o := range strings.SplitSeq(options, ",") {
		if !tmpfsOption.MatchString(o) {
			return specs.Mount{}, fmt.Errorf("unknown option %q; want for example size=64m, mode=1777, ro, exec", o)
		}
		// A later option is stronger; its opposite would only confuse.
		opposite := "no" + o
		if rest, ok := strings.CutPrefix(o, "no"); ok {
			opposite = rest
		}
		m.Options = slices.DeleteFunc(m.Options, func(have string) bool { return have == o || have == opposite })
		m.Options = append(m.Options, o)
	}
	return m, nil
}
