package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/agent/mirror"
	"github.com/seed-efd44b36/kata/internal/link"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func TestGroupName(t *testing.T) {
	for _, tt := range []struct{ id, path, want string }{
		{"c", "", "kata/c"},
		{"c", "/kata/x", "kata/x"},
		{"c", "../../etc", "etc"},
		{"c", "/", "kata/c"},
		{"c", "system.slice:kata:c", "kata/c"},
	} {
		if got := groupName(tt.id, tt.path); got != tt.want {
			t.Errorf("groupName(%q, %q) = %q, want %q", tt.id, tt.path, got, tt.want)
		}
	}
}

func TestParseStatus(t *testing.T) {
	got := parseStatus([]byte("Name:\tevil State: Z\nState:\tS (sleeping)\nPid:\t7\nPPid:\t3\nUid:\t33\t33\t33\t33\nGid:\t1\n"))
	if want := (&agentv1.Process{State: "S", Ppid: 3, Uid: 33}); !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	p, err := readProcess(os.Getpid())
	if err != nil || p.GetPpid() != uint32(os.Getppid()) || !strings.Contains(p.GetCommand(), "agent.test") {
		t.Errorf("this process: %v, %v", p, err)
	}
	if _, err := readProcess(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no process: %v", err)
	}
}

func TestEvents(t *testing.T) {
	e := newEvents()
	for range maxEvents + 3 {
		e.add(&agentv1.NextEventResponse{Container: "old"})
	}
	e.add(&agentv1.NextEventResponse{Container: "new"})
	for i := range maxEvents {
		ev, err := e.next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if want := i == maxEvents-1; (ev.GetContainer() == "new") != want {
			t.Fatalf("event %d is %v", i, ev)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := e.next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no event: %v", err)
	}
	go e.add(&agentv1.NextEventResponse{Container: "late"})
	if ev, err := e.next(t.Context()); err != nil || ev.GetContainer() != "late" {
		t.Errorf("got %v, %v", ev, err)
	}
}

func TestLog(t *testing.T) {
	var kmsg strings.Builder
	logger, fan := newLogger(&kmsg, slog.LevelInfo)
	a, b := streamPair(t)
	done := make(chan struct{})
	go func() { defer close(done); fan.serve(b) }()
	// The reader is there when its first line arrives.
	got := make(chan string)
	go func() {
		buf := make([]byte, 4096)
		n, _ := a.Read(buf)
		got <- string(buf[:n])
	}()
	deadline := time.After(10 * time.Second)
	for line := ""; line == ""; {
		logger.Warn("words", "container", "c1\n")
		select {
		case line = <-got:
			if !strings.Contains(line, `"msg":"words","container":"c1\n"}`) {
				t.Errorf("stream got %q", line)
			}
		case <-time.After(time.Millisecond):
		case <-deadline:
			t.Fatal("nothing arrived")
		}
	}
	a.Close()
	<-done
	logger.Debug("not to be seen")
	first, _, _ := strings.Cut(kmsg.String(), "\n")
	if want := `<4>kata-agent: level=WARN msg=words container="c1\n"`; first != want {
		t.Errorf("kernel's log got %q, want %q", first, want)
	}
	if strings.Contains(kmsg.String(), "seen") {
		t.Error("debug was logged")
	}
}

// streamPair returns the two ends of a stream.
func streamPair(t *testing.T) (host, guest link.Stream) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := link.ListenUnix(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if host, err = link.DialUnix(path).Open(t.Context(), link.Header{Kind: link.KindLog}); err != nil {
		t.Fatal(err)
	}
	if guest, _, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); guest.Close() })
	return host, guest
}

func TestStdioPipes(t *testing.T) {
	s := newStdio(&agentv1.Stdio{Stdin: true, Stdout: true})
	theirs, err := s.pipes(os.Getuid(), os.Getgid())
	if err != nil {
		t.Fatal(err)
	}
	if theirs.Err != nil {
		t.Error("stderr was not asked for")
	}
	s.run()
	in, inGuest := streamPair(t)
	out, outGuest := streamPair(t)
	if err := errors.Join(s.attach(0, inGuest), s.attach(1, outGuest)); err != nil {
		t.Fatal(err)
	}
	if err := s.await(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.attach(1, outGuest); !errors.Is(err, errExists) {
		t.Errorf("second stream: %v", err)
	}
	if err := s.attach(2, outGuest); !errors.Is(err, errInvalid) {
		t.Errorf("stream not asked for: %v", err)
	}
	// The process is cat.
	go func() {
		io.Copy(struct{ io.Writer }{theirs.Out}, struct{ io.Reader }{theirs.In})
		closeStdio(theirs)
	}()
	in.Write([]byte("through two pipes"))
	in.CloseWrite()
	got, err := io.ReadAll(out)
	if err != nil || string(got) != "through two pipes" {
		t.Errorf("got %q, %v", got, err)
	}
	s.close(t.Context())
}

func TestStdioHostStopsReading(t *testing.T) {
	s := newStdio(&agentv1.Stdio{Stdout: true})
	theirs, err := s.pipes(os.Getuid(), os.Getgid())
	if err != nil {
		t.Fatal(err)
	}
	defer closeStdio(theirs)
	s.run()
	out, outGuest := streamPair(t)
	if err := s.attach(1, outGuest); err != nil {
		t.Fatal(err)
	}
	out.Close()
	for err == nil {
		_, err = theirs.Out.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.EPIPE) {
		t.Errorf("the process got %v", err)
	}
	s.close(t.Context())
}

func TestStdioStreamsNeverCome(t *testing.T) {
	s := newStdio(&agentv1.Stdio{Stdin: true, Stdout: true})
	theirs, err := s.pipes(os.Getuid(), os.Getgid())
	if err != nil {
		t.Fatal(err)
	}
	defer closeStdio(theirs)
	s.run()
	s.abandon()
	if err := s.attach(0, nil); !errors.Is(err, errExists) {
		t.Errorf("late stream: %v", err)
	}
	// The process is not held up: it reads the end and writes to nowhere.
	if n, err := theirs.In.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read %d, %v", n, err)
	}
	if _, err := theirs.Out.Write(make([]byte, 1<<20)); err != nil {
		t.Error(err)
	}
	theirs.Out.Close()
	s.close(t.Context())
}

func TestStdioCloseGivesUp(t *testing.T) {
	s := newStdio(&agentv1.Stdio{Stdin: true, Stdout: true})
	theirs, err := s.pipes(os.Getuid(), os.Getgid())
	if err != nil {
		t.Fatal(err)
	}
	defer closeStdio(theirs)
	s.run()
	in, inGuest := streamPair(t)
	_, outGuest := streamPair(t)
	if err := errors.Join(s.attach(0, inGuest), s.attach(1, outGuest)); err != nil {
		t.Fatal(err)
	}
	// Somebody keeps the process's output open, nobody reads its input.
	go in.Write(make([]byte, 1<<20))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	s.close(ctx)
}

func TestFail(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code codes.Code
	}{
		{errMissing, codes.NotFound},
		{errExists, codes.AlreadyExists},
		{errState, codes.FailedPrecondition},
		{errInvalid, codes.InvalidArgument},
		{fmt.Errorf("volume: %w", mirror.ErrInvalid), codes.InvalidArgument},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{io.EOF, codes.Internal},
	} {
		if got := status.Code(fail(tt.err)); got != tt.code {
			t.Errorf("%v: %v, want %v", tt.err, got, tt.code)
		}
	}
	if got := status.Code(failStart(errMissing)); got != codes.FailedPrecondition {
		t.Errorf("a missing container at the start is %v, which means a missing command", got)
	}
}
