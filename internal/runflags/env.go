package runflags

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxEnvFile in bytes bounds a file of environment variables.
const maxEnvFile = 1 << 20

// MergeEnv sets variables in an environment, a list of NAME=VALUE. Of what is
// to be set, NAME alone takes this process's value and removes the variable
// where it has none. A terminal makes TERM known.
func MergeEnv(env, set []string, tty bool) ([]string, error) {
	return mergeEnv(env, set, tty, os.LookupEnv)
}

func mergeEnv(env, set []string, tty bool, lookup func(string) (string, bool)) ([]string, error) {
	var errs []error
	values := make(map[string]string, len(env)+len(set))
	var order []string
	put := func(name, value string) {
		if _, ok := values[name]; !ok {
			order = append(order, name)
		}
		values[name] = value
	}
	for _, kv := range env {
		// The image's own; what is not of the form is left out, as getenv
		// could not find it.
		if name, value, ok := strings.Cut(kv, "="); ok && name != "" && !strings.ContainsRune(kv, 0) {
			put(name, value)
		}
	}
	if _, ok := values["TERM"]; tty && !ok {
		put("TERM", "xterm")
	}
	for _, kv := range set {
		name, value, ok := strings.Cut(kv, "=")
		if name == "" || strings.ContainsRune(kv, 0) {
			errs = append(errs, fmt.Errorf("--env %q: want NAME=VALUE or NAME", kv))
			continue
		}
		if !ok {
			if lookup != nil {
				value, ok = lookup(name)
			}
			if !ok {
				delete(values, name)
				continue
			}
		}
		put(name, value)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	merged := make([]string, 0, len(order))
	for _, name := range order {
		// A name that was removed and set again is twice in the order.
		if value, ok := values[name]; ok {
			merged = append(merged, name+"="+value)
			delete(values, name)
		}
	}
	return merged, nil
}

// environment is the one of the container's first process.
func (f *Flags) environment(in Input, hostname string) ([]string, error) {
	base := []string{"PATH=" + defaultPath, "HOSTNAME=" + hostname}
	if home, err := Home(in.Files, firstOf(f.User, in.Image.User)); err == nil { // else reported with the user
		base = append(base, "HOME="+home)
	}
	env, err := mergeEnv(append(base, in.Image.Env...), nil, f.TTY, in.LookupEnv)
	if err != nil {
		return nil, err
	}
	var set []string
	for _, file := range f.EnvFiles {
		lines, err := readEnvFile(file)
		if err != nil {
			return nil, err
		}
		set = append(set, lines...)
	}
	return mergeEnv(env, append(set, f.Env...), false, in.LookupEnv)
}

func readEnvFile(name string) ([]string, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("--env-file: %w", err)
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, maxEnvFile+1))
	if err != nil {
		return nil, fmt.Errorf("--env-file: %w", err)
	}
	if len(data) > maxEnvFile {
		return nil, fmt.Errorf("--env-file %s: larger than %d bytes", name, maxEnvFile)
	}
	env, err := parseEnvFile(data)
	if err != nil {
		return nil, fmt.Errorf("--env-file %s: %w", name, err)
	}
	return env, nil
}

// parseEnvFile reads lines of NAME=VALUE or NAME; those that start with "#" are
// comments. Values are taken as they are, without unquoting, as Docker does.
func parseEnvFile(data []byte) ([]string, error) {
	var env []string
	sc := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))))
	sc.Buffer(nil, maxEnvFile+1)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimLeft(strings.TrimSuffix(sc.Text(), "\r"), " \t")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, _, _ := strings.Cut(line, "=")
		if name == "" || strings.ContainsAny(name, " \t\x00") {
			return nil, fmt.Errorf("line %d: want NAME=VALUE or NAME", n)
		}
		env = append(env, line)
	}
	return env, sc.Err()
}
