package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/seed-efd44b36/kata/internal/vmm"
	"github.com/seed-efd44b36/kata/internal/vmm/qmp"
)

// Give implements vmm.Giver.
func (m *Machine) Give() (_ vmm.Running, err error) {
	m.mu.Lock()
	proc, monitor, ends, port, at := m.proc, m.monitor, m.ends, m.agent, m.phase
	m.monitor = nil
	m.mu.Unlock()
	if at != started || monitor == nil || ends == nil {
		return vmm.Running{}, errors.New("hand virtual machine over: it does not run, or is another's already")
	}
	if port != nil {
		return vmm.Running{}, errors.New("hand virtual machine over: nobody has been at the agent's port")
	}
	r := vmm.Running{Process: proc}
	defer func() {
		if err != nil {
			err = fmt.Errorf("hand virtual machine over: %w", errors.Join(err, r.Close()))
		}
	}()
	if r.Monitor, err = monitor.Leave(); err != nil {
		return r, err
	}
	for _, c := range []struct {
		conn *net.UnixConn
		file **os.File
	}{{ends.agent, &r.Agent}, {ends.console, &r.Console}} {
		if *c.file, err = c.conn.File(); err != nil { // a duplicate
			return r, err
		}
		if err = c.conn.Close(); err != nil {
			return r, err
		}
	}
	return r, nil
}

// takeOver goes on with a machine that another process has started.
func (m *Machine) takeOver(context.Context) (err error) {
	r := m.cfg.Running
	e := &ends{}
	for _, c := range []struct {
		conn **net.UnixConn
		file *os.File
	}{{&e.qmp, r.Monitor}, {&e.agent, r.Agent}, {&e.console, r.Console}} {
		if *c.conn, err = unixConn(c.file); err != nil {
			break
		}
	}
	if err != nil {
		e.closeOurs()
		r.Process.Kill()
		m.finish(vmm.Exit{Err: err, At: time.Now()})
		return err
	}
	m.mu.Lock()
	m.proc, m.agent, m.ends, m.monitor = r.Process, e.agent, e, qmp.Continue(e.qmp, m.event)
	if m.killed {
		r.Process.Kill()
	}
	m.mu.Unlock()
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(m.console, e.console) })
	go m.watch(r.Process, &reading, e) // ends with QEMU; done tells
	return nil
}

// unixConn returns a connection that works on a duplicate of the file.
func unixConn(f *os.File) (*net.UnixConn, error) {
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	c, ok := conn.(*net.UnixConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("%s is not a unix socket", f.Name())
	}
	return c, nil
}

var _ vmm.Giver = (*Machine)(nil)
