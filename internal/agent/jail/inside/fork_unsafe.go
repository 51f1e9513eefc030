package inside

import (
	"bytes"
	"encoding/json"
	"math"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cloneArgs is struct clone_args of clone3(2), in its first version.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
}

// signalSet is the kernel's.
type signalSet uint64

// fork copies the calling thread to a process of its own, a child of this one's
// parent, which becomes the image. It returns the copy's pid. stdio are the
// descriptors that it gets, and its terminal if tty is set. It makes the calls.
//
// The copy has the memory of this process and one thread, but no Go runtime:
// others may have held its locks. So all that it runs is nosplit, allocates nothing
// and writes no pointer; and until its handlers are gone, no signal may come.
//
// From here on the thread has descriptors of its own, only those that the copy is to
// have: the container can see the copy, and stop it wherever it is. Those of others
// would be held open then.
func (i *image) fork(s *stdio, tty bool, calls []call) (pid int, failed step, errno syscall.Errno) {
	all, none, before := ^signalSet(0), signalSet(0), signalSet(0)
	args := cloneArgs{flags: unix.CLONE_PARENT | unix.CLONE_CLEAR_SIGHAND}
	if failed, errno := i.part(s); errno != 0 {
		return 0, failed, errno
	}
	if errno := setSignalMask(&all, &before); errno != 0 {
		return 0, stepSignals, errno
	}
	n, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if n == 0 && errno == 0 {
		i.become(i.enter(tty, &none, calls))
	}
	_ = setSignalMask(&before, nil)
	runtime.KeepAlive(calls)
	if errno != 0 {
		return 0, stepFork, errno
	}
	i.answer.send(n)
	runtime.KeepAlive(i)
	return int(n), 0, 0
}

// pidAnswer is an answer to the agent, with room for a pid.
type pidAnswer struct {
	message []byte // nil: none is to be sent
	digits  []byte // of the message, the pid's
	sent    bool
}

// newPIDAnswer makes the message ahead: it is sent where nothing can be allocated.
func newPIDAnswer() (pidAnswer, error) {
	body, err := json.Marshal(answer{PID: math.MaxInt32})
	if err != nil {
		return pidAnswer{}, err
	}
	var a pidAnswer
	a.message, _ = frame(body, nil)
	largest := strconv.Itoa(math.MaxInt32)
	at := bytes.LastIndex(a.message, []byte(largest))
	a.digits = a.message[at : at+len(largest)]
	return a, nil
}

// send sends the pid to ControlFD, padded with blanks, which JSON allows.
//
//go:nosplit
func (a *pidAnswer) send(pid uintptr) {
	if len(a.message) == 0 {
		return
	}
	for n := len(a.digits) - 1; n >= 0; n-- {
		a.digits[n] = ' '
		if pid > 0 {
			a.digits[n] = byte('0' + pid%10)
		}
		pid /= 10
	}
	// The kernel reads the message only.
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, ControlFD, uintptr(unsafe.Pointer(&a.message[0])), uintptr(len(a.message)), unix.MSG_NOSIGNAL, 0, 0)
	a.sent = errno == 0 && int(n) == len(a.message)
}

//go:norace
//go:nosplit
func setSignalMask(set, old *signalSet) syscall.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK,
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), unsafe.Sizeof(*set), 0, 0)
	return errno
}

// part gives the thread descriptors of its own. It returns what failed. Until here no
// other than the forker's own socket is ControlFD.
func (i *image) part(s *stdio) (step, syscall.Errno) {
	if _, _, errno := unix.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_FILES, 0, 0); errno != 0 {
		return stepClose, errno
	}
	for to := range s.fds {
		if _, _, errno := unix.RawSyscall(unix.SYS_DUP3, uintptr(s.fds[to]), uintptr(to), 0); errno != 0 {
			return stepStdio, errno
		}
	}
	if i.control != ControlFD { // else it is in place, and closed at the execve
		if _, _, errno := unix.RawSyscall(unix.SYS_DUP3, i.control, ControlFD, unix.O_CLOEXEC); errno != 0 {
			return stepStdio, errno
		}
		i.control = ControlFD
	}
	first := uintptr(ControlFD + 1)
	if i.held != first {
		if _, _, errno := unix.RawSyscall(unix.SYS_DUP3, i.held, first, unix.O_CLOEXEC); errno != 0 {
			return stepStdio, errno
		}
	}
	first++
	if i.time != 0 {
		if _, _, errno := unix.RawSyscall(unix.SYS_DUP3, i.time, first, unix.O_CLOEXEC); errno != 0 {
			return stepTime, errno
		}
		i.time = first
		first++
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_CLOSE_RANGE, first, ^uintptr(0)>>32, 0); errno != 0 {
		return stepClose, errno
	}
	return 0, 0
}

// enter is what the copy does before it stands at the gate. It returns what failed.
//
//go:norace
//go:nosplit
func (i *image) enter(tty bool, none *signalSet, calls []call) (step, syscall.Errno) {
	// Only a process with one thread may, so not the thread that was copied.
	if i.time != 0 {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETNS, i.time, unix.CLONE_NEWTIME, 0); errno != 0 {
			return stepTime, errno
		}
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
		return stepSession, errno
	}
	if tty {
		if _, _, errno := unix.RawSyscall(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0); errno != 0 {
			return stepTerminal, errno
		}
	}
	for n := range calls {
		if errno := calls[n].do(); errno != 0 {
			return stepCalls + step(n), errno
		}
	}
	if errno := setSignalMask(none, nil); errno != 0 {
		return stepSignals, errno
	}
	return 0, 0
}
