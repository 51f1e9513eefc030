package standin

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	proxyv1 "github.com/seed-efd44b36/kata/api/proxy/v1"
	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

const (
	// copyBuffer is the size of one read of output.
	copyBuffer = 128 << 10
	// callTimeout bounds a call for a signal or a size.
	callTimeout = 10 * time.Second
)

// joint is the place where a process of the guest and this one meet.
type joint struct {
	Process
	client   *proxy.Client
	streams  [3]link.Stream
	notifier *notifier
	ended    chan ending // gets how the process has ended, once
}

// ending is how a process has ended, or that nobody knows.
type ending struct {
	code uint32
	oom  bool // a process of the container was killed for want of memory
	err  error
}

// catch catches all signals that are the process's. Those that are about this very
// program are not: its runtime's, and what its terminal and outputs cause.
func catch() (received chan os.Signal, stop func()) {
	received = make(chan os.Signal, 64)
	const last = 64 // of the real-time signals
	for n := unix.Signal(1); n <= last; n++ {
		switch n {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGURG:
		case unix.SIGPIPE:
			// A closed output is an error to handle and not our end.
			signal.Notify(make(chan os.Signal, 1), n)
		default:
			signal.Notify(received, n)
		}
	}
	return received, func() { signal.Stop(received) }
}

// wait asks for the end of the process, which it has with us.
func (j *joint) wait(ctx context.Context) {
	resp, err := j.client.Wait(ctx, &proxyv1.WaitRequest{Container: j.Container, Exec: j.Exec, Hold: true})
	if err != nil {
		j.ended <- ending{code: report.LostCode, err: errors.Join(errGone, err)}
		return
	}
	j.ended <- ending{code: resp.GetExitCode(), oom: resp.GetOomKilled()}
}

func (j *joint) close() {
	for _, st := range j.streams {
		if st != nil {
			_ = st.Close()
		}
	}
	_ = j.client.Close()
}

// run carries data and signals until the process has ended and its output has
// arrived, and returns the exit code.
func (j *joint) run(ctx context.Context, received <-chan os.Signal) int {
	if j.TTY {
		// The terminal of the guest does what there is to do with keys.
		_, _ = term.MakeRaw(int(os.Stdin.Fd()))
	}
	// Both end with this program: they may sit in a read or write that nothing
	// can interrupt.
	go j.forward(ctx, received)
	go func() { _ = link.CopyToEnd(j.streams[0], os.Stdin) }()
	var out sync.WaitGroup
	outputs := []*output{{to: os.Stdout, from: j.streams[1]}}
	if !j.TTY {
		outputs = append(outputs, &output{to: os.Stderr, from: j.streams[2]})
	}
	for _, o := range outputs {
		out.Go(o.copy)
	}
	e := <-j.ended
	if e.err == nil {
		drain(&out, outputs)
	}
	if e.oom {
		j.notifier.give(j.Container)
	}
	if e.err == nil && j.Exec != "" {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		_, _ = j.client.Delete(ctx, &proxyv1.DeleteRequest{Container: j.Container, Exec: j.Exec})
	}
	return int(e.code)
}

// output is one of the process's outputs.
type output struct {
	to    *os.File
	from  link.Stream
	bytes atomic.Int64
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	n, err := o.to.Write(b)
	o.bytes.Add(int64(n))
	return n, err
}

// copy copies the output to its end. When nobody reads it any more, the process is
// told as it would be without a machine between.
func (o *output) copy() {
	_, _ = io.CopyBuffer(o, struct{ io.Reader }{o.from}, make([]byte, copyBuffer))
	_ = o.from.Close()
}

// drain waits for the output of a process that has ended. A guest that does not end
// it, and a reader that does not read, must not hold up the news of its end.
func drain(out *sync.WaitGroup, outputs []*output) {
	done := make(chan struct{})
	go func() { out.Wait(); close(done) }() // ends with this program
	tick := time.NewTicker(patience)
	defer tick.Stop()
	var last int64 = -1
	for {
		var sum int64
		for _, o := range outputs {
			sum += o.bytes.Load()
		}
		if sum == last {
			return
		}
		last = sum
		select {
		case <-done:
			return
		case <-tick.C:
		}
	}
}

// forward passes signals on, and the size of the terminal whenever that changes.
func (j *joint) forward(ctx context.Context, received <-chan os.Signal) {
	for sig := range received {
		n, ok := sig.(unix.Signal)
		switch {
		case !ok:
		case n == unix.SIGWINCH && j.TTY:
			j.resize(ctx)
		default:
			callCtx, cancel := context.WithTimeout(ctx, callTimeout)
			_, _ = j.client.Signal(callCtx, &proxyv1.SignalRequest{Container: j.Container, Exec: j.Exec, Signal: uint32(n)})
			cancel()
		}
	}
}

// resize gives the process's terminal the size of ours.
func (j *joint) resize(ctx context.Context) {
	if !j.TTY {
		return
	}
	w, h, err := term.GetSize(int(os.Stdin.Fd()))
	if err != nil || w == 0 || h == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, _ = j.client.Resize(ctx, &proxyv1.ResizeRequest{Container: j.Container, Exec: j.Exec, Width: uint32(w), Height: uint32(h)})
}
