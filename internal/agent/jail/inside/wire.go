package inside

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// What passes over the socket: the plan, as a length of four bytes with the
// descriptors attached (stdin, stdout, stderr, the pidfds to join, two cgroup.procs,
// a time namespace) and what Plan.encode makes; the answer, in the same form, with the terminal attached if there is one; one
// byte that opens the gate; and then either the end of the stream, which the
// execve brings about, or two bytes: how far the process came, and the error number.
//
// The forker has one socket for all plans. The first descriptor that comes with one
// is a socket for what follows.
//
// Whatever can is sent at once, and read at once: to change between processes
// takes an emulated guest more time than what they do in between.

// maxMessage is far more than the kernel takes as arguments and environment.
const maxMessage = 32 << 20

// maxFiles is how many descriptors one message can have.
const maxFiles = 16

// gate is the byte that lets the process run its program.
const gate = 'g'

// readAhead is how much is read at once: almost every message.
const readAhead = 16 << 10

// step is one of the last steps of a process, of which it can say no more than the
// number.
type step byte

const (
	stepGate step = iota + 1
	stepFork
	stepTime
	stepSession
	stepTerminal
	stepStdio
	stepClose
	stepSignals
	stepFilter
	stepExec
	// stepCalls is the first of Process.limitCalls, and the last one.
	stepCalls
)

var stepNames = [...]string{
	stepGate:     "wait at the gate",
	stepFork:     "fork",
	stepTime:     "enter the time namespace",
	stepSession:  "make a session",
	stepTerminal: "take the terminal",
	stepStdio:    "set up the standard files",
	stepClose:    "close other descriptors",
	stepSignals:  "unblock signals",
	stepFilter:   "load the system call filter",
	stepExec:     "execute the program",
}

// Filter is a program of seccomp(2).
type Filter []unix.SockFilter

// instructionSize is that of struct sock_filter.
const instructionSize = 8

func (f Filter) encode(b []byte) []byte {
	for _, i := range f {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b
}

func decodeFilter(b []byte) (Filter, error) {
	if len(b)%instructionSize != 0 {
		return nil, errors.New("filter is cut off")
	}
	f := make(Filter, 0, len(b)/instructionSize)
	for ; len(b) > 0; b = b[instructionSize:] {
		f = append(f, unix.SockFilter{
			Code: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:]),
		})
	}
	return f, nil
}

// encode makes a message of the plan: the length of the JSON in four bytes, the
// JSON, and the filter, which as JSON would take longer than all else of an exec.
func (p *Plan) encode() ([]byte, error) {
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(text)))
	return p.Process.Filter.encode(append(b, text...)), nil
}

func decodePlan(b []byte) (*Plan, error) {
	if len(b) < 4 {
		return nil, io.ErrUnexpectedEOF
	}
	n := binary.BigEndian.Uint32(b)
	if b = b[4:]; uint64(n) > uint64(len(b)) {
		return nil, io.ErrUnexpectedEOF
	}
	p := new(Plan)
	if err := json.Unmarshal(b[:n], p); err != nil {
		return nil, err
	}
	var err error
	p.Process.Filter, err = decodeFilter(b[n:])
	return p, err
}

// Kind says what sort of failure an answer is about.
type Kind string

// The kinds of failures; any other is Internal.
const (
	Internal   Kind = ""
	NotFound   Kind = "not found"
	Permission Kind = "permission"
)

// answer is what the process says of its progress.
type answer struct {
	Error string `json:",omitempty"`
	Kind  Kind   `json:",omitempty"`
	PID   int32  `json:",omitempty"` // of a process that the forker made
}

// Error is a failure of the process.
type Error struct {
	Kind    Kind
	Message string
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// SendPlan sends the plan and the descriptors.
func SendPlan(c *net.UnixConn, p *Plan, files []*os.File) error {
	body, err := p.encode()
	if err != nil {
		return err
	}
	if len(body) > maxMessage || len(files) > maxFiles {
		return errors.New("message is too large")
	}
	message, oob := frame(body, files)
	n, _, err := c.WriteMsgUnix(message, oob, nil)
	if err != nil {
		return err
	}
	_, err = c.Write(message[n:])
	return err
}

// frame returns a message: the length of the body, the body and the descriptors.
func frame(body []byte, files []*os.File) (message, oob []byte) {
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	message = make([]byte, 0, 4+len(body))
	return append(binary.BigEndian.AppendUint32(message, uint32(len(body))), body...), oob
}

// ReceiveAnswer reads what the process says: nil when it stands at the gate, with
// its terminal if it has one, and with its pid if the forker made it; an *Error when
// it could not get there; io.EOF when it has ended.
func ReceiveAnswer(c *net.UnixConn) (terminal *os.File, pid int, err error) {
	body, files, err := receive(c)
	if err != nil {
		return nil, 0, err
	}
	for i, f := range files {
		// A terminal that is read from must not hold a thread.
		if files[i], err = pollable(f); err != nil {
			closeAll(files)
			return nil, 0, err
		}
	}
	var a answer
	if err := json.Unmarshal(body, &a); err != nil {
		closeAll(files)
		return nil, 0, fmt.Errorf("decode the answer: %w", err)
	}
	if a.Error != "" {
		closeAll(files)
		return nil, 0, &Error{Kind: a.Kind, Message: a.Error}
	}
	if len(files) == 0 {
		return nil, int(a.PID), nil
	}
	closeAll(files[1:])
	return files[0], int(a.PID), nil
}

// pollable returns the file, made anew so that the runtime waits for it without a
// thread.
func pollable(f *os.File) (*os.File, error) {
	defer func() { _ = f.Close() }()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return f, fmt.Errorf("receive a terminal: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return f, fmt.Errorf("receive a terminal: %w", err)
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

// OpenGate lets the process p run its program and returns nil when it does. An
// *Error says why it cannot; the process has ended then. If it ended without a
// word, that is for its waiters to see.
func OpenGate(c *net.UnixConn, p *Process) error {
	_, shut := c.Write([]byte{gate})
	var b [2]byte // which may have come before
	n, err := io.ReadFull(c, b[:])
	if n == 0 && shut != nil {
		return shut
	}
	if n == 0 && (errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET)) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.failureAt(step(b[0]), unix.Errno(b[1]))
}

// failureAt says what went wrong at a step.
func (p *Process) failureAt(s step, errno unix.Errno) error {
	if s == stepExec {
		return execError(p.Args[0], errno)
	}
	what := fmt.Sprintf("step %d", s)
	if int(s) < len(stepNames) && stepNames[s] != "" {
		what = stepNames[s]
	} else if calls, err := p.limitCalls(); err == nil && s >= stepCalls && int(s-stepCalls) < len(calls) {
		what = calls[s-stepCalls].what
	}
	return &Error{Internal, fmt.Sprintf("%s: %v", what, errno)}
}

// receive reads a message. Nothing may follow it before it was answered.
func receive(c *net.UnixConn) ([]byte, []*os.File, error) {
	b, oob := make([]byte, readAhead), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, nil, err
	}
	return rest(c, b[:n], oob[:oobn], flags)
}

// rest reads what comes after the first bytes of a message.
func rest(r io.Reader, first, oob []byte, flags int) (body []byte, files []*os.File, err error) {
	if len(first) == 0 {
		return nil, nil, io.EOF
	}
	files, err = attached(oob)
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	if err != nil {
		return nil, files, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return nil, files, errors.New("too many descriptors")
	}
	message := io.MultiReader(bytes.NewReader(first), r)
	var head [4]byte
	if _, err = io.ReadFull(message, head[:]); err != nil {
		return nil, files, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxMessage {
		return nil, files, errors.New("message is too large")
	}
	if len(first) > len(head)+int(size) {
		return nil, files, errors.New("something follows the message")
	}
	body = make([]byte, size)
	_, err = io.ReadFull(message, body)
	return body, files, err
}

// control is the process's end of the socket. It blocks, and so needs no thread
// that polls.
type control struct{ *os.File }

func (c control) receivePlan() (*Plan, []*os.File, error) {
	b, oob := make([]byte, readAhead), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, err := recvmsg(int(c.Fd()), b, oob)
	if err != nil {
		return nil, nil, err
	}
	return decodeMessage(rest(c, b[:n], oob[:oobn], flags))
}

// decodeMessage decodes the plan in a message that was received.
func decodeMessage(body []byte, files []*os.File, err error) (*Plan, []*os.File, error) {
	if err != nil {
		return nil, nil, err
	}
	p, err := decodePlan(body)
	if err != nil {
		closeAll(files)
		return nil, nil, fmt.Errorf("decode the plan: %w", err)
	}
	return p, files, nil
}

func recvmsg(fd int, head, oob []byte) (n, oobn, flags int, err error) {
	for {
		n, oobn, flags, _, err = unix.Recvmsg(fd, head, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			return n, oobn, flags, err
		}
	}
}

// answer sends what has become of the plan: the terminal's master if there is one,
// the pid of the process if it is another, or the failure.
func (c control) answer(terminal *os.File, pid int, failure error) error {
	a := answer{PID: int32(pid)}
	if failure != nil {
		a.Error = failure.Error()
		if e := (*Error)(nil); errors.As(failure, &e) {
			a.Kind = e.Kind
		}
	}
	var files []*os.File
	if terminal != nil {
		files = append(files, terminal)
	}
	return a.send(int(c.Fd()), files)
}

// send sends the answer, with descriptors, to the other end of a socket.
func (a answer) send(socket int, files []*os.File) error {
	body, err := json.Marshal(a)
	if err != nil {
		return err
	}
	message, oob := frame(body, files)
	return unix.Sendmsg(socket, message, oob, nil, unix.MSG_NOSIGNAL)
}

// attached returns the descriptors of a message.
func attached(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
