package supervise

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Lend gives a child a file for reading which it insists on opening for reading
// and writing. QEMU before 8.2 does so with the file that it maps as the
// machine's memory, even if it maps it privately; with `readonly=on,rom=off`
// later versions need no such help. A private mapping may be written whatever
// the descriptor allows, so a descriptor that cannot be written does, and the
// file is safe from a child that a guest has taken over.
//
// A seccomp filter holds each open(2) and openat(2) of the child, and of what
// it starts, whose flags are O_RDWR and perhaps O_CLOEXEC. If the path is Path,
// the child finds that it has opened File; every other call takes its usual
// course, which the child's root and Landlock determine as ever.
//
// None of it is a wall, so there is nothing to gain by getting around it. Path
// should be nothing that the child could open itself. Of a call that goes on,
// the kernel reads the path again: what another thread of the child has put
// there meanwhile is opened with the child's rights. A path that is changed the
// other way round, a call by another ABI (i386, x32), openat2(2): they at most
// get the descriptor that is to be had anyway, or miss it. The number of calls
// is limited by the time that one goroutine of ours is given.
//
// Linux 5.12 is needed. Before, and where a filter with such a listener is
// around us already, the error of Start is errors.ErrUnsupported.
type Lend struct {
	// Path is what the child opens, absolute and exactly as it does. It need
	// not exist, neither for the child nor for us.
	Path string
	// File is a regular file that is open for reading only. The caller keeps it
	// and closes it when it likes. The child gets another description of it, by
	// way of a mount that is read-only: neither our offset and locks are the
	// child's, nor the file's mode, owner and times, and it cannot be opened
	// again for writing by /proc/self/fd.
	File *os.File
}

// loan is what a child is lent, with the goroutine that does it. A nil one
// lends nothing.
type loan struct {
	path      string
	file      *os.File
	listener  *os.File
	answering sync.WaitGroup
}

// newLoan prepares a loan, on a thread that is not confined yet.
func newLoan(l *Lend) (*loan, error) {
	if l == nil {
		return nil, nil
	}
	if !filepath.IsAbs(l.Path) {
		return nil, fmt.Errorf("lend %q: the path is not absolute", l.Path)
	}
	file, err := readOnly(l.File)
	if err != nil {
		return nil, fmt.Errorf("lend %s: %w", l.Path, err)
	}
	return &loan{path: l.Path, file: file}, nil
}

// readOnly opens a file anew, by way of a mount of its own.
func readOnly(f *os.File) (*os.File, error) {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("read the descriptor's flags: %w", err)
	}
	if flags&unix.O_ACCMODE != unix.O_RDONLY {
		return nil, errors.New("the descriptor is not for reading only")
	}
	mnt, err := unix.OpenTree(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open_tree: %w", err)
	}
	// The mount lives on in what is opened by way of it.
	defer unix.Close(mnt)
	if err := setAttr(mnt, inert, 0, unix.MS_PRIVATE); err != nil {
		return nil, err
	}
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", mnt), os.O_RDONLY|unix.O_CLOEXEC, 0)
}

// begin installs the filter on the calling thread, whose child inherits it, and
// begins to answer. The thread must have no_new_privs or CAP_SYS_ADMIN.
func (l *loan) begin() error {
	if l == nil {
		return nil
	}
	fd, err := listen(filter())
	if err != nil {
		return fmt.Errorf("hold the opening of %s: %w", l.path, lacking(err))
	}
	// Nonblocking, the runtime waits for it as for a socket.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("listen for the opening of %s: %w", l.path, err)
	}
	l.listener = os.NewFile(uintptr(fd), "seccomp listener")
	// No call has the id 0 now, as there is no child yet. That is what a kernel
	// says which understands the rest.
	if err := give(fd, 0, int(l.file.Fd()), 0); !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("hand out %s: %w", l.path, lacking(err))
	}
	l.answering.Go(l.answer) // ends with the listener
	return nil
}

// lacking says of an error of the kernel whether it lacks what we need: an
// operation or flag that it does not know, or room for one more listener.
func lacking(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("seccomp: %w: %w", err, errors.ErrUnsupported)
	}
	return fmt.Errorf("seccomp: %w", err)
}

// end takes back what a begin that may have failed, or not have happened, has
// left. Processes that the child may have left find that opening a file that
// way is not implemented.
func (l *loan) end() {
	if l == nil {
		return
	}
	if l.listener != nil {
		_ = l.listener.Close()
	}
	l.answering.Wait()
	_ = l.file.Close()
}

// answer answers calls until the listener is closed.
func (l *loan) answer() {
	// Should we be at a loss, calls are better refused than never answered.
	defer l.listener.Close()
	conn, err := l.listener.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Read(func(fd uintptr) bool {
		for waiting(int(fd)) {
			if err := l.next(int(fd)); err != nil {
				return true
			}
		}
		return false
	})
}

// waiting reports whether there is a call to answer. Receiving it would wait
// for one, whatever the descriptor's mode; after this it does not, as nobody
// else receives.
func waiting(fd int) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(poll, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && poll[0].Revents&unix.POLLIN != 0
		}
	}
}

// next answers one call. That whoever made it has gone is no error.
func (l *loan) next(fd int) error {
	c, err := receive(fd)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	path, flags := c.path()
	same, err := l.is(int(c.pid), path)
	switch {
	case err != nil:
		// Better no file at all than one that nobody has looked at: the child
		// says what it could not open, and why.
		err = refuse(fd, c.id, err)
	case !same:
		err = proceed(fd, c.id)
	default:
		err = give(fd, c.id, int(l.file.Fd()), flags&unix.O_CLOEXEC)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			err = refuse(fd, c.id, err) // too many are open, for example
		}
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// is reports whether path, an address in the memory of a thread, is the one of
// the loan. Should the thread be gone and its id be another's, the answer is to
// a call that is no more.
func (l *loan) is(tid int, path uint64) (bool, error) {
	text := make([]byte, len(l.path)+1) // with the NUL at its end
	local := []unix.Iovec{{Base: &text[0]}}
	local[0].SetLen(len(text))
	remote := []unix.RemoteIovec{{Base: uintptr(path), Len: len(text)}}
	n, err := unix.ProcessVMReadv(tid, local, remote, 0)
	if errors.Is(err, unix.EFAULT) {
		return false, nil // it is no address, or of a text that is shorter
	}
	if err != nil {
		return false, err
	}
	return string(text[:n]) == l.path+"\x00", nil
}

// filter is the program that holds the calls in question and allows all others.
func filter() []unix.SockFilter {
	// Offsets in struct seccomp_data; the arguments' low words.
	const number, arch, second, third = 0, 4, 16 + 8, 16 + 16
	// What musl adds to all flags. It means nothing on 64 bits, and unix has 0.
	const largeFile = 0o100000
	// unix.SYS_OPEN, which other architectures have not.
	const open = 2
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	unless := func(k uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: skip}
	}
	ret := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	return []unix.SockFilter{
		0:  load(arch),
		1:  unless(unix.AUDIT_ARCH_X86_64, 9),
		2:  load(number),
		3:  unless(open, 2),
		4:  load(second),
		5:  {Code: unix.BPF_JMP | unix.BPF_JA, K: 2},
		6:  unless(unix.SYS_OPENAT, 4),
		7:  load(third),
		8:  {Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: ^uint32(unix.O_CLOEXEC | largeFile)},
		9:  unless(unix.O_RDWR, 1),
		10: ret(unix.SECCOMP_RET_USER_NOTIF),
		11: ret(unix.SECCOMP_RET_ALLOW),
	}
}
