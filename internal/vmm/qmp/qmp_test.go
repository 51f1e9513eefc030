package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}` + "\n"

const patience = 20 * time.Second

// pair returns the two ends of a connection.
func pair(t *testing.T) (ours, theirs *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "qmp")
		conn, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = conn.(*net.UnixConn)
		t.Cleanup(func() { _ = conn.Close() })
	}
	return ends[0], ends[1]
}

// server is QEMU's side of a connection.
type server struct {
	conn  *net.UnixConn
	lines *bufio.Reader
}

func (s *server) say(t *testing.T, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(s.conn, format+"\n", args...); err != nil {
		t.Error(err)
	}
}

// hear returns the next request.
func (s *server) hear(t *testing.T) request {
	t.Helper()
	_ = s.conn.SetReadDeadline(time.Now().Add(patience))
	line, err := s.lines.ReadString('\n')
	if err != nil {
		t.Error(err)
	}
	var r request
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		t.Errorf("request %q: %v", line, err)
	}
	return r
}

// connected returns a client that has shaken hands with the server.
func connected(t *testing.T, handler func(Event)) (*Client, *server) {
	t.Helper()
	ours, theirs := pair(t)
	s := &server{theirs, bufio.NewReader(theirs)}
	var shaking sync.WaitGroup
	shaking.Go(func() {
		s.say(t, "%s", strings.TrimSpace(greeting))
		r := s.hear(t)
		if r.Execute != "qmp_capabilities" {
			t.Errorf("the first command is %q", r.Execute)
		}
		s.say(t, `{"return": {}, "id": %d}`, r.ID)
	})
	c, err := Connect(deadline(t), ours, handler)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	shaking.Wait()
	return c, s
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestConnectErrors(t *testing.T) {
	// answers is said when something has been asked.
	for _, test := range []struct{ name, says, answers, want string }{
		{"nothing", "", "", "EOF"},
		{"no json", "hello\n", "", "decode"},
		{"no greeting", `{"return": {}}` + "\n", "", "no greeting"},
		{"endless line", strings.Repeat("x", maxLine+10), "", "longer"},
		{"end after the greeting", greeting, "", "closed"},
		{"refusal", greeting, `{"error": {"class": "GenericError", "desc": "not today"}, "id": 1}` + "\n", "not today"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ours, theirs := pair(t)
			var saying sync.WaitGroup
			saying.Go(func() {
				_, _ = theirs.Write([]byte(test.says)) // the client may have gone
				if test.answers != "" {
					_, _ = theirs.Read(make([]byte, 1000))
					_, _ = theirs.Write([]byte(test.answers))
				}
				_ = theirs.CloseWrite()
				_, _ = io.Copy(io.Discard, theirs)
			})
			c, err := Connect(deadline(t), ours, nil)
			if c != nil || err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Connect() = %v, %v; want %q", c, err, test.want)
			}
			saying.Wait() // the connection was closed
		})
	}
}

func TestConnectEndsWithTheContext(t *testing.T) {
	ours, _ := pair(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, ours, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Connect() = %v, want the context's error", err)
	}
}

func TestAnswersFindTheirCommands(t *testing.T) {
	c, s := connected(t, nil)
	const n = 20
	var serving sync.WaitGroup
	serving.Go(func() {
		var all []request
		for range n {
			all = append(all, s.hear(t))
		}
		s.say(t, `{"return": "for nobody", "id": 999999}`)
		s.say(t, `{"return": "for nobody"}`)
		for i := range all { // the last one first
			r := all[n-1-i]
			s.say(t, `{"return": {"name": %q}, "id": %d}`, r.Execute, r.ID)
		}
	})
	var asking sync.WaitGroup
	for i := range n {
		asking.Go(func() {
			name := fmt.Sprintf("command-%d", i)
			answer, err := c.Execute(deadline(t), Command{Name: name})
			if err != nil || string(answer) != fmt.Sprintf(`{"name": %q}`, name) {
				t.Errorf("Execute(%s) = %s, %v", name, answer, err)
			}
		})
	}
	asking.Wait()
	serving.Wait()
}

func TestExecuteSendsArgumentsAndReturnsRefusals(t *testing.T) {
	c, s := connected(t, nil)
	var serving sync.WaitGroup
	serving.Go(func() {
		r := s.hear(t)
		if string(r.Arguments) != `{"id":"disk"}` {
			t.Errorf("arguments are %s", r.Arguments)
		}
		s.say(t, `{"error": {"class": "DeviceNotFound", "desc": "no such device"}, "id": %d}`, r.ID)
	})
	_, err := c.Execute(deadline(t), Command{Name: "device_del", Arguments: json.RawMessage(`{"id":"disk"}`)})
	serving.Wait()
	refusal := (*Error)(nil)
	if !errors.As(err, &refusal) || refusal.Class != "DeviceNotFound" || err.Error() != "device_del: no such device" {
		t.Errorf("Execute() = %v, want the refusal", err)
	}
}

func TestExecuteSendsAFile(t *testing.T) {
	c, s := connected(t, nil)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()

	var serving sync.WaitGroup
	serving.Go(func() {
		line, rights := make([]byte, 4096), make([]byte, 64)
		n, m, _, _, err := s.conn.ReadMsgUnix(line, rights)
		if err != nil {
			t.Error(err)
			return
		}
		var r request
		if err := json.Unmarshal(line[:n], &r); err != nil {
			t.Error(err)
		}
		messages, err := unix.ParseSocketControlMessage(rights[:m])
		if err != nil || len(messages) != 1 {
			t.Errorf("control messages: %v, %v", messages, err)
			return
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			t.Errorf("descriptors: %v, %v", fds, err)
			return
		}
		got := os.NewFile(uintptr(fds[0]), "got")
		defer func() { _ = got.Close() }()
		if text, err := io.ReadAll(got); err != nil || string(text) != "content" {
			t.Errorf("the file has %q, %v", text, err)
		}
		s.say(t, `{"return": {"fdset-id": 1, "fd": 17}, "id": %d}`, r.ID)
	})
	if _, err := c.Execute(deadline(t), Command{Name: "add-fd", File: f}); err != nil {
		t.Error(err)
	}
	serving.Wait()
}

func TestEventsGoToTheHandler(t *testing.T) {
	events := make(chan Event, 2)
	_, s := connected(t, func(e Event) { events <- e })
	s.say(t, `{"event": "SHUTDOWN", "data": {"reason": "guest-panic"}, "timestamp": {"seconds": 1, "microseconds": 2}}`)
	s.say(t, `{"event": "STOP"}`)
	for _, want := range []Event{{"SHUTDOWN", json.RawMessage(`{"reason": "guest-panic"}`)}, {"STOP", nil}} {
		select {
		case got := <-events:
			if got.Name != want.Name || string(got.Data) != string(want.Data) {
				t.Errorf("got %s %s, want %s %s", got.Name, got.Data, want.Name, want.Data)
			}
		case <-time.After(patience):
			t.Fatalf("no event %s", want.Name)
		}
	}
}

func TestExecuteEnds(t *testing.T) {
	t.Run("with the context", func(t *testing.T) {
		c, s := connected(t, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := c.Execute(ctx, Command{Name: "slow"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Execute() = %v, want the context's error", err)
		}
		// The late answer disturbs nothing.
		s.say(t, `{"return": "late", "id": %d}`, s.hear(t).ID)
		var serving sync.WaitGroup
		serving.Go(func() { s.say(t, `{"return": "next", "id": %d}`, s.hear(t).ID) })
		if got, err := c.Execute(deadline(t), Command{Name: "next"}); err != nil || string(got) != `"next"` {
			t.Errorf("Execute() = %s, %v", got, err)
		}
		serving.Wait()
	})
	t.Run("with the connection", func(t *testing.T) {
		c, s := connected(t, nil)
		var serving sync.WaitGroup
		serving.Go(func() {
			s.hear(t)
			_ = s.conn.Close()
		})
		if _, err := c.Execute(deadline(t), Command{Name: "quit"}); !errors.Is(err, ErrClosed) {
			t.Errorf("Execute() = %v, want ErrClosed", err)
		}
		serving.Wait()
		<-c.Done()
		if _, err := c.Execute(deadline(t), Command{Name: "next"}); !errors.Is(err, ErrClosed) {
			t.Errorf("Execute() after that = %v, want ErrClosed", err)
		}
	})
	t.Run("with Close", func(t *testing.T) {
		c, s := connected(t, nil)
		result := make(chan error, 1)
		go func() {
			_, err := c.Execute(deadline(t), Command{Name: "quit"})
			result <- err
		}()
		s.hear(t)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-result; !errors.Is(err, ErrClosed) {
			t.Errorf("Execute() = %v, want ErrClosed", err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("the second Close: %v", err)
		}
	})
	t.Run("when QEMU reads nothing", func(t *testing.T) {
		c, _ := connected(t, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		big, err := json.Marshal(strings.Repeat("x", 8<<20))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Execute(ctx, Command{Name: "big", Arguments: big}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Execute() = %v, want the context's error", err)
		}
	})
}

// Whatever QEMU sends, the client neither panics nor hangs.
func FuzzClient(f *testing.F) {
	for _, seed := range []string{
		"",
		greeting,
		greeting + `{"return": {}, "id": 1}` + "\n",
		greeting + `{"return": {}, "id": 1}` + "\n" + `{"event": "STOP", "data": null}` + "\n",
		greeting + `{"error": null, "id": 1}` + "\n",
		greeting + `{"error": {"class": 5}, "id": -1}` + "\n",
		greeting + "\n\n{}\n[]\nnull\n\x00\n",
		`{"QMP": 1}` + "\n" + `{"id": 18446744073709551616}` + "\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, says []byte) {
		ours, theirs := pair(t)
		var saying sync.WaitGroup
		saying.Go(func() {
			_, _ = theirs.Write(says)
			_ = theirs.CloseWrite()
			_, _ = io.Copy(io.Discard, theirs)
		})
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := Connect(ctx, ours, func(Event) {})
		if err == nil {
			_, _ = c.Execute(ctx, Command{Name: "query-status"})
			_ = c.Close()
		}
		saying.Wait()
		if ctx.Err() != nil {
			t.Error("the client hung")
		}
	})
}
