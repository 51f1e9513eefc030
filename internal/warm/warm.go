// Package warm keeps virtual machines that wait for a sandbox: clones of a template
// in which a container has been run ahead. A clone belongs to a process of its own,
// its keeper, which is its VMM's parent and remains that; who claims the clone gets
// its open descriptors, and the connection by which that was done. While the
// connection lasts, the clone lives, and when one of the two processes ends, however
// that happens, so does it.
//
// There is no service that knows all clones: each has a directory among those of
// sandboxes, warm-KEY-RANDOM, with a socket in it until it is claimed.
//
//	keeper: Listen -> Give (waits for a claim) -> Held.Gone, or the VMM's end -> Held.Ended, Close
//	owner:  Claim -> use -> Close
package warm

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/network"
	"github.com/seed-efd44b36/kata/internal/supervise"
	"github.com/seed-efd44b36/kata/internal/vmm"
	"golang.org/x/sys/unix"
)

// ErrNone is that no clone of the kind waits.
var ErrNone = errors.New("no warm clone waits")

// Prefix is what the names of clones begin with.
const Prefix = "warm-"

const (
	socketFile = "claim.sock"
	// version is that of what the two processes say to each other.
	version = 1
	// fixedFiles are those before the network devices.
	fixedFiles = 6
	maxFiles   = 253 // that the kernel passes at once
	// handTime is what a keeper has to hand a clone over, and endTime to end when
	// its clone has ended or is given up.
	handTime = time.Second
	endTime  = 10 * time.Second
)

// Gift is a machine that runs and waits.
type Gift struct {
	// ID is what the clone's directory, cgroup and process are named after.
	ID      string
	Running vmm.Running
	// Share is the connection that its file server has left.
	Share *os.File
	// Devices are its network devices.
	Devices network.Devices
}

// Share is a file server that can leave its connection, as share.Server is.
type Share interface {
	Leave() (*os.File, error)
}

// Network has a machine's devices, as network.Attachment does.
type Network interface {
	Devices() (network.Devices, error)
	Close() error
}

// NewGift takes a machine that waits out of the caller's hands, who goes on to be its
// parent. The caller closes the gift.
func NewGift(id string, m vmm.Machine, s Share, n Network) (g Gift, err error) {
	giver, ok := m.(vmm.Giver)
	if !ok {
		return g, fmt.Errorf("this kind of virtual machine cannot be handed over: %w", errors.ErrUnsupported)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	g.ID = id
	if g.Running, err = giver.Give(); err != nil {
		return g, err
	}
	if g.Share, err = s.Leave(); err != nil {
		return g, err
	}
	if g.Devices, err = n.Devices(); err != nil {
		return g, err
	}
	return g, n.Close()
}

// Close closes the files.
func (g Gift) Close() error {
	errs := []error{g.Running.Close()}
	for _, f := range append([]*os.File{g.Share, g.Devices.NS}, g.Devices.Taps...) {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// gift is what is said with the files.
type gift struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	PID     int    `json:"pid"`
	Files   int    `json:"files"`
}

// end is what is said when the VMM has ended.
type end struct {
	Code   int       `json:"code"`
	Signal int       `json:"signal,omitempty"`
	At     time.Time `json:"at"`
	Err    string    `json:"error,omitempty"`
	Stderr []byte    `json:"stderr,omitempty"`
}

func (e end) exit() supervise.Exit {
	x := supervise.Exit{Code: e.Code, Signal: syscall.Signal(e.Signal), At: e.At}
	if e.Err != "" {
		x.Err = errors.New(e.Err)
	}
	return x
}

// NewID returns the id of a new clone of the kind that the key stands for.
func NewID(key string) string { return Prefix + key + "-" + strings.ToLower(rand.Text()[:8]) }

// IsClone tells whether an id is that of a clone, which has a sandbox's directory and
// is none.
func IsClone(id string) bool { return strings.HasPrefix(id, Prefix) }

// Clone is a clone that was claimed. It is its machine's vmm.Process.
type Clone struct {
	Gift
	dir   string
	pid   int
	pidfd int
	conn  *net.UnixConn // to its keeper
	done  chan struct{}

	closing sync.Once
	closed  error // of close; valid after it

	exit   supervise.Exit // valid after done is closed, like stderr
	stderr []byte
}

// Claim takes a clone of the kind, of those that have their directories in dir. The
// error wraps ErrNone when there is none. want is how many are to wait afterwards.
func Claim(ctx context.Context, dir, key string, want int) (*Clone, error) {
	socks, err := filepath.Glob(filepath.Join(dir, Prefix+key+"-*", socketFile))
	if err != nil {
		return nil, fmt.Errorf("claim a warm clone: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, handTime)
	defer cancel()
	var errs []error
	for _, sock := range socks {
		c, err := claim(ctx, sock, want)
		if err == nil {
			return c, nil
		}
		if errors.Is(err, unix.ECONNREFUSED) { // its keeper was killed
			_, cerr := cleanup.Collect(ctx, filepath.Dir(sock), slog.New(slog.DiscardHandler), nil)
			err = errors.Join(err, cerr)
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, ErrNone
	}
	return nil, fmt.Errorf("claim: %w", errors.Join(errs...))
}

// claim tells the keeper how many clones are wanted after this one.
func claim(ctx context.Context, sock string, want int) (_ *Clone, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", sock)
	if err != nil {
		return nil, err
	}
	c := &Clone{dir: filepath.Dir(sock), conn: conn.(*net.UnixConn), pidfd: -1, done: make(chan struct{})} //nolint:forcetypeassert // of "unix"
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", sock, errors.Join(err, c.conn.Close(), c.Gift.Close()))
		}
	}()
	if deadline, ok := ctx.Deadline(); ok {
		_ = c.conn.SetDeadline(deadline)
	}
	if _, err = c.conn.Write([]byte{byte(min(max(want, 0), 255))}); err != nil {
		return nil, err
	}
	text, files, err := receive(c.conn)
	var g gift
	if err == nil {
		err = json.Unmarshal(text, &g)
	}
	if err == nil && (g.Version != version || len(files) < fixedFiles || len(files) != g.Files) {
		err = fmt.Errorf("its keeper is of another version of kata (%d files, protocol %d)", len(files), g.Version)
	}
	if err != nil {
		for _, f := range files {
			_ = f.Close()
		}
		return nil, err
	}
	c.ID, c.pid = g.ID, g.PID
	c.Running = vmm.Running{Monitor: files[1], Agent: files[2], Console: files[3], Process: c}
	c.Share, c.Devices = files[4], network.Devices{NS: files[5], Taps: files[fixedFiles:]}
	c.pidfd, err = unix.FcntlInt(files[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err = errors.Join(err, files[0].Close(), c.conn.SetDeadline(time.Time{})); err != nil {
		return nil, err
	}
	go c.follow() // ends with the keeper's end of the connection; Done tells
	return c, nil
}

// receive reads one message with files.
func receive(conn *net.UnixConn) ([]byte, []*os.File, error) {
	text := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := conn.ReadMsgUnix(text, oob)
	if err != nil {
		return nil, nil, err
	}
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if flags&unix.MSG_CTRUNC != 0 {
		err = errors.Join(err, errors.New("its files do not find room among our open ones"))
	}
	for _, m := range messages {
		fds, rerr := unix.ParseUnixRights(&m)
		err = errors.Join(err, rerr)
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "warm clone"))
		}
	}
	if err == nil && n == 0 {
		err = errors.New("it is another's already")
	}
	return text[:n], files, err
}

// follow waits for the keeper to say that the VMM has ended, and to end.
func (c *Clone) follow() {
	defer close(c.done)
	c.exit = supervise.Exit{Code: -1, Err: errors.New("the keeper of the warm clone has ended")}
	var e end
	var watching sync.WaitGroup
	watching.Go(func() {
		c.ended()
		// A keeper that stands still must not hold up those who wait for the VMM.
		_ = c.conn.SetReadDeadline(time.Now().Add(endTime))
	})
	d := json.NewDecoder(c.conn)
	if d.Decode(&e) == nil {
		c.exit, c.stderr = e.exit(), e.Stderr
		_ = d.Decode(&e) // waits for its end
	} else {
		c.exit.At = time.Now()
	}
	// A keeper that was killed takes its VMM along.
	c.Kill()
	watching.Wait()
}

// ended returns when the VMM has ended.
func (c *Clone) ended() {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(c.pidfd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// PID implements vmm.Process.
func (c *Clone) PID() int { return c.pid }

// Done implements vmm.Process.
func (c *Clone) Done() <-chan struct{} { return c.done }

// Exit implements vmm.Process.
func (c *Clone) Exit() supervise.Exit {
	<-c.done
	return c.exit
}

// Stderr implements vmm.Process.
func (c *Clone) Stderr() []byte {
	select {
	case <-c.done:
		return c.stderr
	default:
		return nil
	}
}

// Kill implements vmm.Process.
func (c *Clone) Kill() { _ = unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0) }

// Records are what there is of the clone on the host, below the configured parent of
// cgroups: for the ledger of its owner.
func (c *Clone) Records(cgroupParent string) []cleanup.Record {
	return []cleanup.Record{
		{Kind: cleanup.KindDir, Name: c.dir},
		{Kind: cleanup.KindCgroup, Name: filepath.Join(cgroupParent, c.ID)},
		{Kind: cleanup.KindProcess, Name: c.ID},
	}
}

// Release is Close, and removes what a keeper that was killed has left.
func (c *Clone) Release(ctx context.Context, log *slog.Logger) error {
	err := c.Close()
	_, cerr := cleanup.Collect(ctx, c.dir, log, nil)
	return errors.Join(err, cerr)
}

// Close ends the clone, and waits until its keeper has. It may be called again.
func (c *Clone) Close() error {
	c.closing.Do(func() { c.closed = c.close() })
	return c.closed
}

func (c *Clone) close() error {
	_ = c.conn.CloseWrite()
	timer := time.NewTimer(endTime)
	defer timer.Stop()
	var err error
	select {
	case <-c.done:
	case <-timer.C:
		err = fmt.Errorf("the keeper of warm clone %s does not end", c.ID)
	}
	err = errors.Join(err, c.conn.Close())
	<-c.done
	return errors.Join(err, unix.Close(c.pidfd), c.Gift.Close())
}

// Waiting is a clone that nobody has claimed.
type Waiting struct {
	ID, Key string
	Since   time.Time
}

// List returns the clones that wait, of those that have their directories in dir.
func List(dir string) []Waiting {
	socks, _ := filepath.Glob(filepath.Join(dir, Prefix+"*", socketFile)) // a constant pattern
	var out []Waiting
	for _, sock := range socks {
		id := filepath.Base(filepath.Dir(sock))
		key, _, _ := strings.Cut(strings.TrimPrefix(id, Prefix), "-")
		if info, err := os.Lstat(sock); err == nil && kept(filepath.Dir(sock)) {
			out = append(out, Waiting{ID: id, Key: key, Since: info.ModTime()})
		}
	}
	return out
}

// kept tells whether the keeper of the clone lives: it holds the lock.
func kept(dir string) bool {
	f, err := os.Open(filepath.Join(dir, cleanup.LockFile))
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

// Dismiss ends a clone that waits, and returns when it is gone. No other takes its
// place. It may be claimed or gone already.
func Dismiss(ctx context.Context, dir string, w Waiting) error {
	ctx, cancel := context.WithTimeout(ctx, handTime)
	defer cancel()
	c, err := claim(ctx, filepath.Join(dir, w.ID, socketFile), 0)
	if err != nil {
		return nil // somebody else has it
	}
	return c.Close()
}

// Hurry gives the VMM the priority of the calling process, and its processors: it was
// made at a lower priority, on the processors of whoever filled the pool.
func (c *Clone) Hurry() error {
	prio, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return os.NewSyscallError("getpriority", err)
	}
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return os.NewSyscallError("sched_getaffinity", err)
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", c.pid))
	if err != nil {
		return fmt.Errorf("priority of the warm clone: %w", err)
	}
	// Where memory runs out it goes like any machine of this owner. To be spared more
	// takes a capability that the owner may not have.
	if score, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.pid), score, 0)
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err != nil {
			continue
		}
		// The call answers 20 less than the priority. A thread may have ended.
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, 20-prio); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("priority of the warm clone: %w", err)
		}
		// A cpuset that has none of them stays as it is.
		if err := unix.SchedSetaffinity(tid, &cpus); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("processors of the warm clone: %w", err)
		}
	}
	return nil
}
