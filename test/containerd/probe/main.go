// Command probe does in a container what no applet of busybox does, for tests
// of volumes.
//
//	probe serve PATH     listens on a unix socket and echoes each connection
//	probe ask PATH TEXT  sends a text to one and prints the answer
//	probe hold PATH      locks a file, says so, and keeps it locked
//	probe try PATH       tells whether a file can be locked
//	probe map PATH TEXT  writes a text by way of a shared mapping, and keeps it mapped
//	probe uid            prints the effective user
//	probe watch PATH     prints what inotify tells of a directory or file
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 2 && args[0] == "serve":
		err = serve(args[1])
	case len(args) == 3 && args[0] == "ask":
		err = ask(args[1], args[2])
	case len(args) == 2 && args[0] == "hold":
		err = hold(args[1])
	case len(args) == 2 && args[0] == "try":
		err = try(args[1])
	case len(args) == 3 && args[0] == "map":
		err = mapped(args[1], args[2])
	case len(args) == 1 && args[0] == "uid":
		fmt.Println(os.Geteuid())
	case len(args) == 2 && args[0] == "watch":
		err = watch(os.Stdout, args[1])
	default:
		err = errors.New("usage: probe serve PATH | ask PATH TEXT | hold PATH | try PATH | map PATH TEXT | uid | watch PATH")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func serve(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		if _, err := io.Copy(c, c); err != nil {
			return err
		}
		if err := c.Close(); err != nil {
			return err
		}
	}
}

func ask(path, text string) error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, text+"\n"); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, c)
	return err
}

// locked opens a file and locks it, then another in the other way, each as a whole.
// Not one file in both: Linux's 9p makes one kind of both.
func locked(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return f, fmt.Errorf("flock: %w", err)
	}
	other, err := unix.Open(path+"2", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644) // as long as we live
	if err != nil {
		return f, err
	}
	if err := unix.FcntlFlock(uintptr(other), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		return f, fmt.Errorf("fcntl: %w", err)
	}
	return f, nil
}

func hold(path string) error {
	f, err := locked(path)
	if err != nil {
		return err
	}
	fmt.Println("locked")
	_, err = unix.Poll(nil, -1)
	return errors.Join(err, f.Close())
}

func try(path string) error {
	f, err := locked(path)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		fmt.Println("somebody else has it")
	case err != nil:
		return err
	default:
		fmt.Println("free")
	}
	return f.Close()
}

func mapped(path, text string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m, text)
	// 9p's reads go past what is mapped, until it is written back.
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return err
	}
	fmt.Println("written")
	_, err = unix.Poll(nil, -1)
	return errors.Join(err, f.Close())
}

// events are those that programs which watch their configuration ask for.
var events = []struct {
	bit  uint32
	name string
}{
	{unix.IN_MODIFY, "modify"},
	{unix.IN_ATTRIB, "attrib"},
	{unix.IN_MOVED_FROM, "moved-from"},
	{unix.IN_MOVED_TO, "moved-to"},
	{unix.IN_CREATE, "create"},
	{unix.IN_DELETE, "delete"},
	{unix.IN_DELETE_SELF, "delete-self"},
}

func watch(out io.Writer, path string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	var mask uint32
	for _, e := range events {
		mask |= e.bit
	}
	if _, err := unix.InotifyAddWatch(fd, path, mask); err != nil {
		return err
	}
	fmt.Fprintln(out, path, "watched")
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			mask, size := binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[12:])
			name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size], []byte{0})
			b = b[unix.SizeofInotifyEvent+size:]
			var what []string
			for _, e := range events {
				if mask&e.bit != 0 {
					what = append(what, e.name)
				}
			}
			fmt.Fprintln(out, path, strings.Join(what, ","), string(name))
		}
	}
}
