package cleanup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where the host mounts its cgroup hierarchies: one file system
// of version 2, or a directory with one for each controller of version 1 and
// perhaps "unified".
const cgroupRoot = "/sys/fs/cgroup"

// removeCgroup kills what is in the cgroup path of every hierarchy below root
// and removes it with its children. Our own process is moved out, never
// killed: it is the sandbox's owner, which releases what it has.
func removeCgroup(ctx context.Context, root, path string) error {
	clean := filepath.Clean("/" + path)
	if clean == "/" {
		return fmt.Errorf("cgroup %q: not below the root: %w", path, fs.ErrInvalid)
	}
	hierarchies := []string{root}
	if !isCgroup(root) {
		entries, err := os.ReadDir(root)
		if err != nil {
			return fmt.Errorf("cgroup hierarchies: %w", err)
		}
		hierarchies = nil
		for _, e := range entries {
			if h := filepath.Join(root, e.Name()); e.IsDir() && isCgroup(h) {
				hierarchies = append(hierarchies, h)
			}
		}
	}
	var errs []error
	for _, h := range hierarchies {
		if err := removeCgroupDir(ctx, h, filepath.Join(h, clean)); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// isCgroup guards against a wrong path: only in a cgroup file system does
// rmdir remove no data.
func isCgroup(path string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false
	}
	return st.Type == unix.CGROUP_SUPER_MAGIC || st.Type == unix.CGROUP2_SUPER_MAGIC
}

// removeCgroupDir removes one directory, children first. A process that was
// killed leaves its cgroup a little after its end is told, hence the retries.
func removeCgroupDir(ctx context.Context, hierarchy, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroupDir(ctx, hierarchy, filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if err := emptyCgroup(ctx, hierarchy, dir); err != nil {
			return fmt.Errorf("cgroup %s: %w", dir, err)
		}
		err := unix.Rmdir(dir)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY):
			return fmt.Errorf("cgroup %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cgroup %s: still in use: %w", dir, ctx.Err())
		case <-time.After(pause):
		}
	}
}

func emptyCgroup(ctx context.Context, hierarchy, dir string) error {
	members, err := pids(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, pid := range members {
		switch pid {
		case 0: // a process outside our pid namespace: cannot be named
			return errors.New("it holds a process of another pid namespace")
		case os.Getpid():
			if err := os.WriteFile(filepath.Join(hierarchy, "cgroup.procs"), []byte("0"), 0); err != nil {
				return fmt.Errorf("leave it: %w", err)
			}
		default:
			if err := killPID(ctx, pid); err != nil {
				return err
			}
		}
	}
	return nil
}
