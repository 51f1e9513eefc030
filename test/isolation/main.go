// Command isolation shows what a container sees of its host: it runs itself in
// a container of any OCI runtime and prints a table of what the host has, what
// the container has, and whose it is.
//
//	go run ./test/isolation                                     with kata-runtime
//	go run ./test/isolation -- runc run --bundle {bundle} {id}  with another one
//
// It changes nothing on the host. What would change something (the clock is
// set, a module offered to the kernel) is only tried in a container that has
// another kernel than the host.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// timeout is for the container; only a hang reaches it.
const timeout = 3 * time.Minute

func main() {
	flags := flag.NewFlagSet("isolation", flag.ExitOnError)
	collectFor := flags.String("collect", "", "print what is seen from here as JSON; the value is the boot id of the host")
	asJSON := flags.Bool("json", false, "print JSON")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: isolation [-json] [-- RUNTIME-COMMAND... with {bundle} and {id}]")
		flags.PrintDefaults()
	}
	_ = flags.Parse(os.Args[1:]) // it exits
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	var err error
	if *collectFor != "" {
		err = json.NewEncoder(os.Stdout).Encode(collect(*collectFor))
	} else {
		err = report(ctx, os.Stdout, flags.Args(), *asJSON)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "isolation:", err)
		os.Exit(1)
	}
}

// report compares host and container and prints the table.
func report(ctx context.Context, out io.Writer, runtime []string, asJSON bool) error {
	rows, err := compare(ctx, runtime)
	if err != nil {
		return err
	}
	if asJSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(rows)
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tHOST\tCONTAINER\tWHOSE")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.What, clip(r.Host), clip(r.Container), r.Whose)
	}
	return w.Flush()
}

func clip(s string) string {
	const width = 48
	if r := []rune(s); len(r) > width {
		return string(r[:width-1]) + "…"
	}
	return s
}

// row is a line of the table.
type row struct {
	What      string `json:"what"`
	Host      string `json:"host"`
	Container string `json:"container"`
	// Whose is "own", "host's", or "hidden": the host's, and refused.
	Whose string `json:"whose"`
}

// compare runs the container and judges each item.
func compare(ctx context.Context, runtime []string) ([]row, error) {
	if len(runtime) == 0 {
		program := "kata-runtime"
		if dir := os.Getenv("KATA_BIN"); dir != "" {
			program = filepath.Join(dir, program)
		}
		runtime = []string{program, "run", "--bundle", "{bundle}", "{id}"}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	before := collect("")
	clock, err := readClock()
	if err != nil {
		return nil, err
	}
	inside, err := runContainer(ctx, runtime, before[bootID])
	if err != nil {
		return nil, err
	}
	moved, err := clock.restoreIfMoved()
	if err != nil {
		return nil, err
	}
	after := collect("")
	var rows []row
	for _, it := range items() {
		r := row{What: it.name, Host: after[it.name], Container: inside[it.name]}
		switch {
		case it.name == systemTime && moved:
			r.Whose = "host's"
		case strings.HasPrefix(r.Container, refused):
			r.Whose = "hidden"
		default:
			r.Whose = it.judge(facts{before, after, inside})
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// runContainer runs this program in a container and returns what it has seen.
func runContainer(ctx context.Context, runtime []string, hostBoot string) (_ map[string]string, err error) {
	bundle, err := os.MkdirTemp("/var/tmp", "kata-isolation-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(bundle)) }()
	if err := writeBundle(bundle, hostBoot); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	id := filepath.Base(bundle)
	args := make([]string, len(runtime))
	for i, a := range runtime {
		args[i] = strings.NewReplacer("{bundle}", bundle, "{id}", id).Replace(a)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, stderr.Bytes())
	}
	var seen map[string]string
	if err := json.Unmarshal(out, &seen); err != nil {
		return nil, fmt.Errorf("output of the container %q: %w", out, err)
	}
	return seen, nil
}

// writeBundle makes a bundle whose root file system is this program alone.
func writeBundle(dir, hostBoot string) error {
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "isolation"), self, 0o755); err != nil {
		return err
	}
	config, err := json.Marshal(containerSpec(hostBoot))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600)
}

// containerSpec is of a container that has more than usual rights over time,
// log and modules, so that what keeps them apart is not the lack of a right.
func containerSpec(hostBoot string) *specs.Spec {
	caps := []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SYS_TIME", "CAP_SYSLOG", "CAP_SYS_MODULE",
	}
	mount := func(destination, typ string, options ...string) specs.Mount {
		return specs.Mount{Destination: destination, Type: typ, Source: typ, Options: append(options, "nosuid", "noexec")}
	}
	return &specs.Spec{
		Version:  "1.0.2",
		Hostname: "container",
		Root:     &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{
			Args: []string{"/isolation", "-collect", hostBoot}, Env: []string{"PATH=/"}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			mount("/proc", "proc", "nodev"), mount("/sys", "sysfs", "nodev", "ro"), mount("/dev", "tmpfs", "mode=755", "size=1m"),
			mount("/tmp", "tmpfs", "nodev", "size=1m"),
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
		}},
	}
}
