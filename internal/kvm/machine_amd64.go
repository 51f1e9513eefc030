package kvm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Requests of the KVM interface (linux/kvm.h), with the sizes of what they carry.
const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmGetSupportedCPUID   = 0xc008ae05
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmSetTSSAddr          = 0xae47
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84
	kvmSetCPUID2           = 0x4008ae90

	regsSize, sregsSize = 0x90, 0x138
	segmentSize         = 24
	maxCPUID            = 256 // entries of 40 bytes
)

// Offsets in the page that a virtual CPU shares with us (struct kvm_run).
const (
	immediateExit = 1
	exitReason    = 8
	exitData      = 32
)

// Reasons of an exit.
const (
	exitIO            = 2
	exitHLT           = 5
	exitShutdown      = 8
	exitFailEntry     = 9
	exitInternalError = 17
)

// The machine's memory. Everything below 2 MiB is mapped to itself; the trial
// of paging changes the entry of pageUnderTest.
const (
	memorySize   = 0x20000
	pml4         = 0x1000
	pdpt         = 0x2000
	pageDir      = 0x3000
	pageTable    = 0x4000
	gdt          = 0x5000
	idt          = 0x6000
	trialCode    = 0x8000
	handlerCode  = 0x9000
	stackTop     = 0x10000
	codeSelector = 0x08
	dataSelector = 0x10
	donePort     = 0xf4
)

// machine is a throw-away virtual machine with one CPU in 64-bit mode, ring 0.
type machine struct {
	vm, vcpu     int
	memory, page []byte
}

func newMachine(dev int) (*machine, error) {
	m := &machine{vm: -1, vcpu: -1}
	if err := m.make(dev); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *machine) make(dev int) (err error) {
	if version, err := ioctl(dev, kvmGetAPIVersion, 0); err != nil || version != 12 {
		return fmt.Errorf("its interface has version %d, not 12", version)
	}
	if m.vm, err = ioctl(dev, kvmCreateVM, 0); err != nil {
		return fmt.Errorf("make a virtual machine: %w", err)
	}
	unix.CloseOnExec(m.vm)
	// Older Intel CPUs need three pages of the guest for themselves.
	if _, err := ioctl(m.vm, kvmSetTSSAddr, 0xfffbd000); err != nil {
		return fmt.Errorf("place the task state segment: %w", err)
	}
	if err := m.makeMemory(); err != nil {
		return err
	}
	if m.vcpu, err = ioctl(m.vm, kvmCreateVCPU, 0); err != nil {
		return fmt.Errorf("make a virtual CPU: %w", err)
	}
	unix.CloseOnExec(m.vcpu)
	size, err := ioctl(dev, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return fmt.Errorf("ask for the size of a virtual CPU: %w", err)
	}
	m.page, err = unix.Mmap(m.vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map a virtual CPU: %w", err)
	}
	return m.makeCPU(dev)
}

func (m *machine) close() {
	if m.page != nil {
		_ = unix.Munmap(m.page)
	}
	if m.vcpu >= 0 {
		_ = unix.Close(m.vcpu)
	}
	if m.vm >= 0 {
		_ = unix.Close(m.vm)
	}
	if m.memory != nil {
		_ = unix.Munmap(m.memory)
	}
}

func (m *machine) makeMemory() error {
	memory, err := unix.Mmap(-1, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("allocate memory: %w", err)
	}
	m.memory = memory
	const present = 0x3 // and writable
	put := binary.LittleEndian.PutUint64
	put(memory[pml4:], pdpt|present)
	put(memory[pdpt:], pageDir|present)
	put(memory[pageDir:], pageTable|present)
	for i := range uint64(512) {
		put(memory[pageTable+8*i:], i<<12|present)
	}
	put(memory[gdt+codeSelector:], 0x00af9b000000ffff)
	put(memory[gdt+dataSelector:], 0x00cf93000000ffff)
	// Vector 3, an interrupt gate to the handler.
	put(memory[idt+3*16:], handlerCode|codeSelector<<16|0x8e00<<32)
	copy(memory[handlerCode:], handler())

	region := make([]byte, 32) // slot 0 at guest address 0
	put(region[16:], memorySize)
	put(region[24:], addressOf(memory))
	if err := ioctlBuffer(m.vm, kvmSetUserMemoryRegion, region); err != nil {
		return fmt.Errorf("give memory to the machine: %w", err)
	}
	return nil
}

func (m *machine) makeCPU(dev int) error {
	cpuid := make([]byte, 8+40*maxCPUID)
	binary.LittleEndian.PutUint32(cpuid, maxCPUID)
	if err := ioctlBuffer(dev, kvmGetSupportedCPUID, cpuid); err != nil {
		return fmt.Errorf("read the CPU's features: %w", err)
	}
	if err := ioctlBuffer(m.vcpu, kvmSetCPUID2, cpuid); err != nil {
		return fmt.Errorf("set the CPU's features: %w", err)
	}
	sregs := make([]byte, sregsSize)
	if err := ioctlBuffer(m.vcpu, kvmGetSregs, sregs); err != nil {
		return fmt.Errorf("read the special registers: %w", err)
	}
	longMode(sregs)
	if err := ioctlBuffer(m.vcpu, kvmSetSregs, sregs); err != nil {
		return fmt.Errorf("enter 64-bit mode: %w", err)
	}
	return nil
}

// longMode fills struct kvm_sregs for 64-bit mode, ring 0, with paging.
func longMode(sregs []byte) {
	le := binary.LittleEndian
	segment := func(i int, selector uint16, kind, long, big byte) {
		s := sregs[i*segmentSize : (i+1)*segmentSize]
		clear(s)
		le.PutUint32(s[8:], 0xffffffff) // limit
		le.PutUint16(s[12:], selector)
		s[14] = kind
		s[15] = 1   // present
		s[17] = big // 32-bit operands
		s[18] = 1   // not a system segment
		s[19] = long
		s[20] = 1 // limit in pages
	}
	segment(0, codeSelector, 0xb, 1, 0) // cs
	for i := 1; i <= 5; i++ {           // ds, es, fs, gs, ss
		segment(i, dataSelector, 0x3, 0, 1)
	}
	table := func(offset int, base uint64, limit uint16) {
		le.PutUint64(sregs[offset:], base)
		le.PutUint16(sregs[offset+8:], limit)
	}
	const tables = 8 * segmentSize // after cs, …, ss, tr, ldt
	table(tables, gdt, 3*8-1)
	table(tables+16, idt, 256*16-1)
	const control = tables + 32
	le.PutUint64(sregs[control:], 0x80000033)               // cr0: PG NE ET MP PE
	le.PutUint64(sregs[control+16:], pml4)                  // cr3
	le.PutUint64(sregs[control+24:], 1<<5|1<<9|1<<10|1<<18) // cr4: PAE OSFXSR OSXMMEXCPT OSXSAVE
	le.PutUint64(sregs[control+40:], 1<<8|1<<10)            // efer: LME LMA
}

// run runs code, which writes to donePort when all went well and halts
// otherwise.
func (m *machine) run(ctx context.Context, code []byte) error {
	copy(m.memory[trialCode:], code)
	regs := make([]byte, regsSize)
	le := binary.LittleEndian
	le.PutUint64(regs[6*8:], stackTop)   // rsp
	le.PutUint64(regs[16*8:], trialCode) // rip
	le.PutUint64(regs[17*8:], 0x2)       // rflags
	if err := ioctlBuffer(m.vcpu, kvmSetRegs, regs); err != nil {
		return fmt.Errorf("set the registers: %w", err)
	}
	for {
		_, err := ioctl(m.vcpu, kvmRun, 0)
		switch {
		case ctx.Err() != nil:
			return errors.New("the virtual CPU did not finish in time; it seems to be emulated one instruction after the other")
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return fmt.Errorf("run the virtual CPU: %w", err)
		}
		return m.outcome()
	}
}

// outcome says how the virtual CPU stopped.
func (m *machine) outcome() error {
	le := binary.LittleEndian
	switch reason := le.Uint32(m.page[exitReason:]); reason {
	case exitIO:
		if port := le.Uint16(m.page[exitData+2:]); port != donePort {
			return fmt.Errorf("it wrote to port %#x", port)
		}
		return nil
	case exitHLT:
		return errors.New("it gave a wrong result")
	case exitShutdown:
		return errors.New("it ended in a triple fault")
	case exitFailEntry:
		return fmt.Errorf("the CPU refused to run the guest (hardware reason %#x)", le.Uint64(m.page[exitData:]))
	case exitInternalError:
		if le.Uint32(m.page[exitData:]) == 1 {
			return errors.New("the host cannot emulate it (a para-virtual or nested KVM)")
		}
		return fmt.Errorf("internal error of KVM, code %d", le.Uint32(m.page[exitData:]))
	default:
		return fmt.Errorf("it stopped for the unexpected reason %d", reason)
	}
}
