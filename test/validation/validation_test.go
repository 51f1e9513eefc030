//go:build integration

package validation

import (
	"context"
	_ "embed"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// programs are those of the suite.
var programs = []string{
	"config_updates_without_affect", "create", "default", "delete", "delete_only_create_resources", "delete_resources",
	"hooks", "hooks_stdin", "hostname", "kill", "kill_no_effect", "killsig",
	"linux_cgroups_blkio", "linux_cgroups_cpus", "linux_cgroups_devices", "linux_cgroups_hugetlb", "linux_cgroups_memory",
	"linux_cgroups_network", "linux_cgroups_pids", "linux_cgroups_relative_blkio", "linux_cgroups_relative_cpus",
	"linux_cgroups_relative_devices", "linux_cgroups_relative_hugetlb", "linux_cgroups_relative_memory",
	"linux_cgroups_relative_network", "linux_cgroups_relative_pids",
	"linux_devices", "linux_masked_paths", "linux_mount_label", "linux_ns_itype", "linux_ns_nopath", "linux_ns_path",
	"linux_ns_path_type", "linux_process_apparmor_profile", "linux_readonly_paths", "linux_rootfs_propagation",
	"linux_seccomp", "linux_sysctl", "linux_uid_mappings", "misc_props", "mounts", "pidfile",
	"poststart", "poststart_fail", "poststop", "poststop_fail", "prestart", "prestart_fail",
	"process", "process_capabilities", "process_capabilities_fail", "process_oom_score_adj", "process_rlimits",
	"process_rlimits_fail", "process_user", "root_readonly_true", "start", "state",
}

// few are those that are run without KATA_LONG.
var few = []string{"create", "default", "hostname", "prestart", "start", "state"}

// deadline is for one program; only a hang reaches it.
const deadline = 5 * time.Minute

// What holds when a program has ended well: it says little else, if it fails.
const (
	endsWell      = "ends with exit code 0"
	noErrorIsTold = "tells no error"
)

// outcome are the assertions of a program, and whether they held wherever they were
// made.
type outcome map[string]bool

var (
	assertion = regexp.MustCompile(`(?m)^(not )?ok \d+ - (.*)$`)
	errorTold = regexp.MustCompile(`(?m)^ *"error": "`)
	// changing is what differs in the text of an assertion from run to run.
	changing = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}|ocitest\d+|\d{3,}`)
)

// read reads what a program has printed.
func read(printed []byte, code int) outcome {
	o := outcome{endsWell: code == 0, noErrorIsTold: !errorTold.Match(printed)}
	for _, m := range assertion.FindAllSubmatch(printed, -1) {
		name := changing.ReplaceAllString(string(m[2]), "…")
		held, made := o[name]
		o[name] = len(m[1]) == 0 && (held || !made)
	}
	return o
}

// validate runs a program with a runtime.
func validate(t *testing.T, program, runtime string) (outcome, string) {
	t.Helper()
	root := filepath.Join(roots, program, filepath.Base(runtime))
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	// Others have to get to it: the root of a user namespace is another one.
	tmp, err := os.MkdirTemp("/var/tmp", "kata-validation-") //nolint:usetesting // t.TempDir is below a directory that only we may enter
	if err == nil {
		err = os.Chmod(tmp, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), filepath.Base(runtime))
	text := fmt.Sprintf("#!/bin/sh\nexec %s --root %s \"$@\"\n", runtime, root)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, program))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "RUNTIME="+script, "TMPDIR="+tmp, "KATA_CONF_FILE="+env.Config)
	// Containers without a mount namespace leave their mounts where they are made.
	cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	// A file, which a container that is left may keep open.
	out, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	_ = cmd.Run()
	if err := ctx.Err(); err != nil {
		t.Errorf("%s: %v", program, err)
	}
	b, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	clean(t, runtime, root)
	if err := os.RemoveAll(tmp); err != nil {
		t.Error(err)
	}
	return read(b, cmd.ProcessState.ExitCode()), string(b)
}

// clean deletes what a program has left: some leave containers.
func clean(t *testing.T, runtime, root string) {
	t.Helper()
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), runtime, "--root", root, "delete", "--force", e.Name())
		cmd.Env = append(os.Environ(), "KATA_CONF_FILE="+env.Config)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("delete container %s: %v: %s", e.Name(), err, out)
		}
	}
	for {
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
			return
		}
	}
}

//go:embed exceptions.txt
var exceptionList string

// exceptions are the reasons why assertions need not hold, by program and assertion.
func exceptions(t *testing.T) map[string]map[string]string {
	t.Helper()
	all := make(map[string]map[string]string)
	for line := range strings.Lines(exceptionList) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.SplitN(line, " | ", 3)
		if len(fields) != 3 || !slices.Contains(programs, fields[0]) {
			t.Fatalf("exceptions.txt: %q is not PROGRAM | ASSERTION | REASON", line)
		}
		if all[fields[0]] == nil {
			all[fields[0]] = make(map[string]string)
		}
		all[fields[0]][fields[1]] = fields[2]
	}
	return all
}

// anything in the place of an assertion stands for all of the program.
const anything = "*"

// byLuck begins the reasons of programs that may hold or not.
const byLuck = "by luck: "

// verdict is what has come of a program that was run with both runtimes.
type verdict struct {
	both                     int      // assertions that hold with both
	broken, known, recovered []string // what holds with runc only; the same, as listed; what is listed in vain
}

func judge(reference, ours outcome, reasons map[string]string) (v verdict) {
	for _, name := range slices.Sorted(maps.Keys(reference)) {
		listed := reasons[name] != "" || reasons[anything] != ""
		switch {
		case !reference[name]:
		case ours[name]:
			v.both++
			if reasons[name] != "" {
				v.recovered = append(v.recovered, name)
			}
		case listed:
			v.known = append(v.known, name)
		default:
			v.broken = append(v.broken, name)
		}
	}
	if r := reasons[anything]; r != "" && !strings.HasPrefix(r, byLuck) && v.both == len(reference) {
		v.recovered = append(v.recovered, anything)
	}
	return v
}

// tries are how often a program is run until nothing is broken: the programs wait ten
// seconds for what a busy machine without KVM may need longer for.
const tries = 3

// TestRuntimeTools runs a few of the programs, or all of them with KATA_LONG.
func TestRuntimeTools(t *testing.T) {
	reasons := exceptions(t)
	chosen := few
	if os.Getenv("KATA_LONG") != "" {
		chosen = programs
	}
	for _, program := range chosen {
		t.Run(program, func(t *testing.T) {
			reference, _ := validate(t, program, "runc")
			var v verdict
			for range tries {
				ours, printed := validate(t, program, filepath.Join(env.Bin, "kata-runtime"))
				if v = judge(reference, ours, reasons[program]); len(v.broken) == 0 {
					break
				}
				t.Logf("it said:\n%s", printed)
			}
			t.Logf("hold with both: %d; with runc only, as listed: %q", v.both, v.known)
			if len(v.broken) > 0 {
				t.Errorf("hold with runc only: %q", v.broken)
			}
			if len(v.recovered) > 0 {
				t.Errorf("are in exceptions.txt, and hold: %q", v.recovered)
			}
		})
	}
}
