// Command probe makes system calls that no shell makes, inside a container, and
// prints a line for the outcome of each. The differential test compares the
// lines of two runtimes.
//
//	probe files DIR             what the file system of the directory does
//	probe as UID COMMAND…       run a command as another user, without groups
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 2 && args[0] == "files":
		err = files(os.Stdout, args[1])
	case len(args) > 2 && args[0] == "as":
		err = as(args[1], args[2:])
	default:
		err = errors.New("usage: probe files DIR | probe as UID COMMAND…")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

// as becomes the user and executes the command.
func as(user string, command []string) error {
	uid, err := strconv.Atoi(user)
	if err != nil {
		return err
	}
	// The package syscall changes all threads.
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
		return err
	}
	return unix.Exec(command[0], command, os.Environ())
}

// files tries a list of calls, each in a directory of its own.
func files(out io.Writer, dir string) error {
	for i, c := range calls() {
		d := fmt.Sprintf("%s/probe-%d", dir, i)
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
		if err := os.Chdir(d); err != nil {
			return err
		}
		result, err := c.try()
		fmt.Fprintf(out, "%s: %s%s\n", c.name, result, explain(err))
		if err := os.Chdir("/"); err != nil {
			return err
		}
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	return nil
}

// explain gives an error without the paths in it.
func explain(err error) string {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return " " + unix.ErrnoName(errno)
	}
	if err == nil {
		return ""
	}
	if errors.Is(err, fs.ErrNotExist) {
		return " not there"
	}
	return " " + err.Error()
}
