package sandboxtest

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	ttrpclog "github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// ownNS marks the process that runs the tests in a mount namespace of its own,
// as kata-proxy is in one. Its value is the cgroup below which it may make
// others.
const ownNS = "KATA_SANDBOX_TEST_CGROUP"

// hostNSFile is the file descriptor of the mount namespace of the parent.
const hostNSFile = 3

// Run is m.Run for packages whose tests have sandboxes. It runs the tests in a
// process with a mount namespace of its own, as kata-proxy is, and fails if
// something of them is left at the end: goroutines, file descriptors, mounts,
// child processes, cgroups.
func Run(m *testing.M) (code int) {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	if os.Getenv(ownNS) != "" {
		// As kata-proxy does.
		if err := ttrpclog.SetLevel("panic"); err != nil {
			panic(err)
		}
		return runAndLookForLeaks(m)
	}
	parent := "/kata-test-" + strconv.Itoa(os.Getpid())
	host, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		panic(err)
	}
	// Most tests wait for a deadline of ours, so many fit beside one another.
	c := exec.Command("/proc/self/exe", append([]string{"-test.parallel=64"}, os.Args[1:]...)...)
	c.Env = append(os.Environ(), ownNS+"="+parent)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.ExtraFiles = []*os.File{host}
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // the death signal is tied to it
	failed := c.Run() != nil
	left, err := removeCgroups(parent)
	if err != nil || len(left) > 0 {
		fmt.Fprintln(os.Stderr, "cgroups are left:", left, err)
		failed = true
	}
	if failed {
		return 1
	}
	return 0
}

// runAndLookForLeaks runs the tests, after which nothing of them must be left
// in this process or its mount namespace.
func runAndLookForLeaks(m *testing.M) int {
	before := snapshot()
	code := m.Run()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var left []string
		for thing, n := range snapshot() {
			if n > before[thing] {
				left = append(left, fmt.Sprintf("%d more of %s", n-before[thing], thing))
			}
		}
		if len(left) == 0 {
			return code
		}
		select {
		case <-tick.C:
		case <-deadline:
			fmt.Fprintln(os.Stderr, "left by the tests:\n"+strings.Join(left, "\n"))
			return 1
		}
	}
}

// snapshot counts what a sandbox could leave behind in its process.
func snapshot() map[string]int {
	s := map[string]int{}
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for g := range strings.SplitSeq(string(stacks), "\n\n") {
		// The test framework's own have none of our functions in them.
		if lines := strings.Split(g, "\n"); strings.Contains(g, "seed-efd44b36") && !strings.Contains(g, "sandboxtest.Run") || strings.Contains(g, "ttrpc") {
			s["goroutine\n"+strings.Join(lines[1:], "\n")]++
		}
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	for _, fd := range fds {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err != nil || strings.HasPrefix(target, "anon_inode:") { // the runtime's own
			continue
		}
		kind, _, _ := strings.Cut(target, ":[")
		s["file descriptor of "+kind]++
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		panic(err)
	}
	for l := range strings.Lines(string(mounts)) {
		if f := strings.Fields(l); len(f) > 4 {
			s["mount on "+f[4]]++
		}
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	if err == nil {
		s["child process"] = len(strings.Fields(string(children)))
	}
	return s
}

// removeCgroups removes the parent of the tests' cgroups from all hierarchies
// and returns the sandboxes' own that are still there.
func removeCgroups(parent string) (left []string, err error) {
	parents, err := filepath.Glob("/sys/fs/cgroup/*" + parent)
	if err != nil {
		return nil, err
	}
	for _, p := range append(parents, "/sys/fs/cgroup"+parent) {
		err := filepath.WalkDir(p, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && path != p {
				left = append(left, path)
			}
			return nil
		})
		if err != nil {
			return left, err
		}
		_ = unix.Rmdir(p) // an error shows as what is left
	}
	return left, nil
}

// hostNS returns the mount namespace of the host, as a caller of kata-proxy
// hands it over.
func hostNS(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(hostNSFile, unix.F_DUPFD_CLOEXEC, 10)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "host mount namespace")
}
