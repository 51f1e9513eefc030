// Package vmm describes a virtual machine as the rest of the project sees it:
// what it is made of (Config), what can be asked of it (Machine), and what a
// driver can do (Capabilities). Drivers live below it (vmm/qemu); every driver
// passes the conformance suite in vmm/vmmtest.
//
// A machine is fixed: all its devices exist from its first instruction, and a
// sandbox fills them in. Nothing is hot-plugged into PCI, so that a machine can
// later be restored from a template without a change of devices.
//
// Life cycle: driver.New(Config) -> Start -> use -> Kill -> Done is closed.
// Kill never needs the guest and may be called at any time, more than once.
package vmm

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/seed-efd44b36/kata/internal/supervise"
	"github.com/seed-efd44b36/kata/internal/tail"
)

// ErrGone is wrapped by every error that is due to the end of the VMM process.
var ErrGone = errors.New("virtual machine is gone")

// Accel names what runs the guest's instructions.
type Accel string

// The accelerators. AccelAuto is resolved before a Config is made.
const (
	AccelAuto Accel = "auto"
	AccelKVM  Accel = "kvm"
	AccelTCG  Accel = "tcg"
)

// Config is all that a driver needs to know. It holds no defaults: the caller
// has resolved them. Files are owned by the caller and may be closed after
// Start has returned.
type Config struct {
	// ID is the sandbox's id; it appears in the VMM's command line, so that
	// the process can be found again by it.
	ID string
	// Dir is an existing directory, private to this machine, mode 0700. The
	// driver puts no file there that it does not remove.
	Dir string
	// Binary is the absolute path of the VMM.
	Binary string
	// MachineType is "q35" or "microvm".
	MachineType string
	// Accel is AccelKVM or AccelTCG.
	Accel Accel
	// CPUs is the number of virtual CPUs, at least 1.
	CPUs int
	// MemoryMiB is the guest's memory.
	MemoryMiB int
	// Kernel is an uncompressed ELF with a PVH note; Initrd a cpio archive.
	Kernel, Initrd string
	// KernelParams is appended to the driver's own kernel command line.
	KernelParams string
	// Share is the directory that the guest sees.
	Share Share
	// NICs are the network devices; microvm has room for MicrovmNICs of them.
	NICs []NIC
	// NetNS is the network namespace that the VMM runs in; nil: an empty one.
	NetNS *os.File
	// VsockCID is the guest's context id, 0 for no vsock device.
	VsockCID uint32
	// Memory, when set, is a file of MemoryMiB that holds the guest's memory: the
	// machine can be saved. With State it is only read, and may be open for
	// reading only; the guest's changes are the machine's own.
	Memory *os.File
	// State, when set, is what Saver.Save has written: the machine is a copy of
	// that one and goes on where it was stopped. All of Config but ID, Dir and files
	// has to be as it was there.
	State *os.File
	// Running, when set, is a machine of this Config that another process has
	// started: Start takes it over.
	Running *Running
	// Place, when set, is called on the thread that forks a process of the
	// driver, right before: it puts the thread, or by the attributes the process,
	// into the sandbox's host cgroup.
	Place func(*syscall.SysProcAttr) error
	// Unprivileged makes the driver drop what it can (capabilities, root).
	Unprivileged bool
}

// Share is the shared directory. One of Server and Socket says who serves it.
type Share struct {
	// Tag is the mount tag that the guest uses.
	Tag string
	// Server is the VMM's end of a connection to internal/fileserver; when set,
	// the share is 9p and needs nothing else of the host.
	Server *os.File
	// Socket is that of a running virtiofsd; when set, the share is virtio-fs
	// and the guest's memory is shared with it.
	Socket string
}

// MicrovmNICs is how many network devices find room in a microvm, whatever other
// devices it has.
const MicrovmNICs = 2

// NIC is a network device of the guest. Its MTU is the guest's affair.
type NIC struct {
	MAC string
	// Tap holds the open tap device; nil: the device has no peer.
	Tap *os.File
	// VhostNet, when set, is an open /dev/vhost-net, for this device alone.
	VhostNet *os.File
}

// Disk is a raw block device or file, opened by the caller.
type Disk struct {
	// ID is unique in the machine and is the disk's serial number in the
	// guest: lower-case letters, digits and dashes, at most 20 characters.
	ID       string
	File     *os.File
	ReadOnly bool
	Limits   DiskLimits
}

// DiskLimits are how much of a disk may be used each second, 0 for no limit.
// The VMM enforces them.
type DiskLimits struct {
	ReadBytes, WriteBytes           uint64
	ReadOperations, WriteOperations uint64
}

// Capabilities is what a driver can do on this host.
type Capabilities struct {
	Disks    bool // AddDisk and RemoveDisk
	VirtioFS bool
	Vsock    bool
	VhostNet bool
}

// Exit is how a VMM process ended.
type Exit struct {
	// Err is nil after a clean end that was asked for; else it says how the
	// process ended and wraps ErrGone.
	Err error
	// Stderr is the tail of what the VMM printed, Console the tail of the
	// guest's console. Both are raw: quote them before they are printed.
	Stderr, Console []byte
	At              time.Time
}

// Saver is implemented by machines of drivers that can save them.
type Saver interface {
	// Save stops the machine, whose Config has to have Memory, and writes the
	// state of its devices to the file. Afterwards it can only be killed.
	Save(ctx context.Context, state *os.File) error
}

// Running is a machine that runs while it changes hands: what its next owner needs
// to go on with it. The process that started it remains the VMM's parent.
type Running struct {
	// Monitor is the VMM's control connection, Agent the agent's port, with nothing
	// on it, and Console the guest's console. Start works on
	// duplicates.
	Monitor, Agent, Console *os.File
	// Process is the VMM's process; the machine owns it from Start on.
	Process Process
}

// Close closes the files, not the machine.
func (r Running) Close() error {
	var errs []error
	for _, f := range []*os.File{r.Monitor, r.Agent, r.Console} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// Process is a VMM's process, a child of ours or of another process.
type Process interface {
	PID() int
	// Done is closed when it has ended, and what its parent had made for it is
	// removed; then Exit and Stderr, the tail of its output, are final.
	Done() <-chan struct{}
	Exit() supervise.Exit
	Stderr() []byte
	// Kill sends SIGKILL.
	Kill()
}

// Giver is implemented by machines of drivers that can hand them over.
type Giver interface {
	// Give returns what the next owner needs. The agent's port must have been
	// left, and is not asked for again. Of the machine there is nothing any more
	// but PIDs, Done and Kill; the caller closes the files.
	Give() (Running, error)
}

// Machine is one virtual machine.
type Machine interface {
	// Start boots the machine and returns when the VMM runs the guest. On
	// error nothing is left running, and the error has the cause (exit
	// status, tail of stderr).
	Start(ctx context.Context) error
	// Agent returns the connection to the guest's agent port. It can be asked
	// for once; the caller closes it. What is written before the guest
	// listens is delivered when it does.
	Agent(ctx context.Context) (net.Conn, error)
	// AddDisk attaches a disk, RemoveDisk takes it away again.
	AddDisk(ctx context.Context, d Disk) error
	RemoveDisk(ctx context.Context, id string) error
	// PIDs are the processes of the machine on the host, the VMM first.
	PIDs() []int
	// Console is the tail of the guest's console, which grows with it. It is
	// raw: quote it before it is printed.
	Console() *tail.Buffer
	// Done is closed when the VMM has ended; then Exit tells how.
	Done() <-chan struct{}
	// Kill ends the VMM now and waits until it is gone and what the driver
	// made is removed. Exit is valid afterwards.
	Kill(ctx context.Context) Exit
}
