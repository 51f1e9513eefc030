package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/cleanup"
	"github.com/seed-efd44b36/kata/internal/config"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/operator"
	"github.com/seed-efd44b36/kata/internal/owner"
	"github.com/seed-efd44b36/kata/internal/program"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/timeline"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// readyTimeout bounds the start of the kata-proxy process itself.
const readyTimeout = 10 * time.Second

// File descriptors that kata-proxy inherits.
const (
	readyFD  = 3 // it writes an error, or "ok"
	ownerFD  = 4 // it reads the end of its owner
	mountsFD = 5 // the caller's mount namespace
	// firstForeignFD and those above it, which this program may have
	// inherited, are not handed on.
	firstForeignFD = 3
)

// lastWords is how much of a log is shown, in bytes.
const lastWords = 2000

// Client talks to one kata-proxy.
type Client struct {
	proxyv1.ProxyService
	id    string
	link  link.Opener
	rpc   *ttrpc.Client
	owner *os.File
	gone  chan struct{} // closed when the connection has ended
}

// SpawnOptions say how to start a kata-proxy.
type SpawnOptions struct {
	// ID of the sandbox.
	ID string
	// Config is the caller's; kata-proxy reads it again, from ConfigPath.
	Config     config.Config
	ConfigPath string
}

// Spawn starts a kata-proxy for a new sandbox and connects to it. The caller
// owns the sandbox: if it ends, or calls Close, the sandbox ends. The error is
// kata-proxy's own when it could not start, and nothing is left of it then.
func Spawn(ctx context.Context, o SpawnOptions) (*Client, error) {
	if err := sandbox.CheckID(o.ID); err != nil {
		return nil, err
	}
	ctx, end := timeline.Begin(ctx, "start kata-proxy")
	defer end()
	path, err := program.Find("kata-proxy")
	if err != nil {
		return nil, err
	}
	// kata-proxy runs in another directory.
	configPath := cmp.Or(o.ConfigPath, os.Getenv(config.EnvFile))
	if configPath != "" {
		if configPath, err = filepath.Abs(configPath); err != nil {
			return nil, fmt.Errorf("start kata-proxy: %w", err)
		}
	}
	mounts, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return nil, fmt.Errorf("start kata-proxy: %w", err)
	}
	defer mounts.Close()
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start kata-proxy: %w", err)
	}
	defer readyR.Close()
	ownerR, ownerW, err := os.Pipe()
	if err != nil {
		_ = readyW.Close()
		return nil, fmt.Errorf("start kata-proxy: %w", err)
	}
	cmd := exec.Command(path, "--id", o.ID, "--config", configPath)
	cmd.ExtraFiles = []*os.File{readyW, ownerR, mounts}
	cmd.Dir = "/"
	cmd.Env = append(program.Environment(), timeline.Environ(ctx)...)
	if err := unix.CloseRange(firstForeignFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("start kata-proxy: keep descriptors to ourselves: %w", err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, // a Ctrl-C at the terminal is the caller's
		// Whatever is mounted for the sandbox is seen by it alone and ends
		// with it.
		Unshareflags: syscall.CLONE_NEWNS,
	}
	err = cmd.Start()
	_ = readyW.Close()
	_ = ownerR.Close()
	if err != nil {
		_ = ownerW.Close()
		return nil, fmt.Errorf("start kata-proxy: %w", err)
	}
	_ = cmd.Process.Release()
	// One that has told why has removed what it had made.
	abandon := func(err error) error {
		_ = ownerW.Close() // by which it ends, should it live
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyTimeout)
		defer cancel()
		if _, cerr := AwaitEnd(ctx, o.Config, o.ID); cerr != nil {
			err = fmt.Errorf("%w; and what it left is not removed: %w", err, cerr)
		}
		return err
	}
	if err := readyR.SetReadDeadline(time.Now().Add(readyTimeout)); err != nil {
		return nil, abandon(fmt.Errorf("start kata-proxy: %w", err))
	}
	answer, err := io.ReadAll(io.LimitReader(readyR, 64<<10))
	if text := strings.TrimSpace(string(answer)); err != nil || text != "ok" {
		if text != "" {
			_ = ownerW.Close()
			return nil, errors.New(text)
		}
		// Its log goes with the rest.
		said, _ := os.ReadFile(filepath.Join(o.Config.Runtime.StateDir, o.ID, owner.LogFile))
		what := "it ended without a word"
		if errors.Is(err, os.ErrDeadlineExceeded) {
			what = fmt.Sprintf("it said nothing for %s; is this host overloaded?", readyTimeout)
		}
		return nil, abandon(fmt.Errorf("start kata-proxy: %s (%w); the end of its log: %q", what, orEOF(err), said[max(0, len(said)-lastWords):]))
	}
	c, err := Dial(ctx, o.Config.Runtime.StateDir, o.ID)
	if err != nil {
		return nil, abandon(err)
	}
	c.owner = ownerW
	return c, nil
}

func orEOF(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Dial connects to the kata-proxy of a sandbox that exists. The error wraps
// sandbox.ErrNotFound when there is none.
func Dial(ctx context.Context, stateDir, id string) (*Client, error) {
	if err := sandbox.CheckID(id); err != nil {
		return nil, err
	}
	l := link.DialUnix(filepath.Join(stateDir, id, operator.SocketFile))
	st, err := l.Open(ctx, link.Header{Kind: link.KindRPC})
	if err != nil {
		return nil, fmt.Errorf("connect to sandbox %s: %w: %w", id, sandbox.ErrNotFound, err)
	}
	c := &Client{id: id, link: l, gone: make(chan struct{})}
	c.rpc = ttrpc.NewClient(st, ttrpc.WithOnClose(func() { close(c.gone) }))
	c.ProxyService = proxyv1.NewProxyClient(c.rpc)
	return c, nil
}

// History asks for the time lines of the sandbox's starts.
func (c *Client) History(ctx context.Context) (timeline.History, error) {
	resp, err := c.Trace(ctx, &proxyv1.TraceRequest{})
	if err != nil {
		return timeline.History{}, fmt.Errorf("time line of sandbox %s: %w", c.id, Explain(err))
	}
	h := timeline.History{Forgotten: int(resp.GetForgotten())}
	for _, st := range resp.GetStarts() {
		l := timeline.Line{Container: st.GetContainer(), Exec: st.GetExec()}
		for _, p := range st.GetPhases() {
			l.Phases = append(l.Phases, timeline.Phase{
				Name: p.GetName(), Start: time.Unix(0, p.GetStartUnixNs()), Dur: time.Duration(p.GetDurationNs()),
				Depth: int(p.GetDepth()), Open: p.GetOpen(), Guest: p.GetGuest(),
			})
		}
		h.Lines = append(h.Lines, l)
	}
	return h, nil
}

// Gone is closed when the connection to kata-proxy has ended.
func (c *Client) Gone() <-chan struct{} { return c.gone }

// Disown lets the sandbox go on after this program has ended.
func (c *Client) Disown() error {
	if c.owner == nil {
		return nil
	}
	if _, err := c.owner.Write([]byte{1}); err != nil {
		return fmt.Errorf("leave sandbox %s to itself: %w", c.id, err)
	}
	return nil
}

// End ends the sandbox and returns when all of it has gone. A kata-proxy that
// has died is no error: what it left is for cleanup.Collect.
func (c *Client) End(ctx context.Context) error {
	// The answer may be overtaken by the end of the connection.
	if _, err := c.Shutdown(ctx, &proxyv1.ShutdownRequest{}); err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		return Explain(err)
	}
	select {
	case <-c.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end sandbox %s: %w", c.id, ctx.Err())
	}
}

// Close ends the connection. A sandbox that this client owns ends.
func (c *Client) Close() error {
	err := c.rpc.Close()
	if c.owner != nil {
		_ = c.owner.Close()
	}
	return errors.Join(err, c.link.Close())
}

// OpenStdio connects to one stream of a process. When it returns, the stream
// is established as far as the guest.
func (c *Client) OpenStdio(ctx context.Context, container, exec string, fd uint8) (link.Stream, error) {
	st, err := c.link.Open(ctx, link.Header{Kind: link.KindStdio, Container: container, Exec: exec, FD: fd})
	if err != nil {
		return nil, fmt.Errorf("open stdio %d of container %s: %w", fd, container, err)
	}
	var b [1]byte
	if _, err := io.ReadFull(st, b[:]); err != nil {
		return nil, errors.Join(fmt.Errorf("open stdio %d of container %s: refused, see the sandbox's %s: %w", fd, container, owner.LogFile, err), st.Close())
	}
	return st, nil
}

// errProxyGone: kata-proxy ended while it was asked for something.
var errProxyGone = fmt.Errorf("%w: its kata-proxy has gone without an answer; if nobody ended it, the kernel's log (`dmesg`) tells whether it was for want of memory", sandbox.ErrDead)

// Explain turns the status of a failed call back into an error of package
// sandbox, with the text as kata-proxy gave it.
func Explain(err error) error {
	if errors.Is(err, ttrpc.ErrClosed) {
		return errProxyGone
	}
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	kind := map[codes.Code]error{
		codes.NotFound: sandbox.ErrCommandNotFound, codes.PermissionDenied: sandbox.ErrCommandDenied,
		codes.InvalidArgument: sandbox.ErrInvalid, codes.AlreadyExists: sandbox.ErrExists,
		codes.FailedPrecondition: sandbox.ErrState, codes.Unavailable: sandbox.ErrDead,
	}[st.Code()]
	return &callError{kind: kind, text: st.Message()}
}

// callError is an error that crossed the socket.
type callError struct {
	kind error
	text string
}

func (e *callError) Error() string { return e.text }
func (e *callError) Unwrap() error { return e.kind }

// lookAgain is how often AwaitEnd looks.
const lookAgain = 20 * time.Millisecond

// AwaitEnd returns when a sandbox that ends has gone, and with it what it left on the
// host, should its owner have died. When the context ends first, the sandbox is alive,
// and the error is the context's.
func AwaitEnd(ctx context.Context, conf config.Config, id string) (alive bool, err error) {
	again := time.NewTicker(lookAgain)
	defer again.Stop()
	for {
		alive, err := cleanup.Collect(ctx, filepath.Join(conf.Runtime.StateDir, id), slog.New(slog.DiscardHandler), Releasers(conf))
		if err != nil || !alive {
			return false, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return true, ctx.Err()
		}
	}
}
