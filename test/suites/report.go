package main

import (
	_ "embed"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// outcome is how a test ended.
type outcome string

// Outcomes of a test.
const (
	passed  outcome = "pass"
	failed  outcome = "FAIL"
	skipped outcome = "skip"
	late    outcome = "pass (2nd try)"
)

// results are the outcomes of tests and of their parts, by name.
type results map[string]outcome

func (r results) any(o outcome) bool {
	return slices.Contains(slices.Collect(maps.Values(r)), o)
}

// pair are the outcomes with both runtimes; that of ours is empty when the test
// was not run.
type pair struct {
	reference, ours outcome
}

// verdict is a line that a test program prints when a test has ended.
var verdict = regexp.MustCompile(`(?m)\x16 *--- (PASS|FAIL|SKIP): (\S+) \(`)

// begun is a line that it prints when one begins.
var begun = regexp.MustCompile(`(?m)\x16=== RUN +(\S+)$`)

// parse reads the output of a test program with -test.v=test2json, in which each
// such line has a mark at its beginning. What has begun and never ended failed.
func parse(output string) results {
	r := make(results)
	for _, m := range begun.FindAllStringSubmatch(output, -1) {
		r[m[1]] = failed
	}
	for _, m := range verdict.FindAllStringSubmatch(output, -1) {
		r[m[2]] = map[string]outcome{"PASS": passed, "FAIL": failed, "SKIP": skipped}[m[1]]
	}
	return r
}

//go:embed exceptions.txt
var exceptionList string

// exceptions returns the reasons of the tests that are known to fail with kata,
// by suite and name.
func exceptions() (map[string]map[string]string, error) {
	all := make(map[string]map[string]string)
	for line := range strings.Lines(exceptionList) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		head, reason, _ := strings.Cut(line, ": ")
		suite, test, ok := strings.Cut(head, " ")
		if !ok || reason == "" {
			return nil, fmt.Errorf("exceptions.txt: %q is not SUITE TEST: REASON", line)
		}
		if all[suite] == nil {
			all[suite] = make(map[string]string)
		}
		all[suite][test] = reason
	}
	return all, nil
}

// report is what a comparison has come to, as names of tests. Of a test that has
// parts, these are in it.
type report struct {
	both      []string // pass with both
	late      []string // of these, those that needed a second try
	notOurs   []string // do not pass with the reference
	broken    []string // pass with the reference, fail with ours, and are not listed
	excepted  []string // the same, and are listed
	recovered []string // are listed, and pass
	unknown   []string // are listed, and are no tests
	reasons   map[string]string
}

// broke reports whether the test passes with the reference only.
func (p pair) broke() bool {
	return p.reference == passed && p.ours != passed && p.ours != late
}

// slow begins the reasons of tests that may pass or not: what a machine
// without KVM loses now and then.
const slow = "without KVM "

// judge sorts tests by their outcomes; whole is whether all were run. A listed
// name stands for the test's parts as well.
func judge(all map[string]pair, reasons map[string]string, whole bool) report {
	r := report{reasons: reasons}
	used := make(map[string]bool) // listed names, of what fails as they say
	for _, name := range slices.Sorted(maps.Keys(all)) {
		p := all[name]
		if hasParts, brokenParts := partsOf(all, name); hasParts && (brokenParts || !p.broke()) {
			continue // its parts say more
		}
		switch listed := listedAs(reasons, name); {
		case p.reference != passed:
			r.notOurs = append(r.notOurs, name)
		case p.broke() && listed != "":
			used[listed] = true
			r.excepted = append(r.excepted, name)
		case p.broke():
			r.broken = append(r.broken, name)
		default:
			r.both = append(r.both, name)
			if p.ours == late {
				r.late = append(r.late, name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		switch p, ok := all[name]; {
		case !ok && whole:
			r.unknown = append(r.unknown, name)
		case ok && p.reference == passed && !used[name] && !strings.HasPrefix(reasons[name], slow):
			r.recovered = append(r.recovered, name)
		}
	}
	return r
}

// partsOf tells whether a test has parts, and whether one of them is broken.
func partsOf(all map[string]pair, name string) (some, broken bool) {
	for other, p := range all {
		if strings.HasPrefix(other, name+"/") {
			some, broken = true, broken || p.broke()
		}
	}
	return some, broken
}

// listedAs returns the name by which a test, or what it is a part of, is listed.
func listedAs(reasons map[string]string, name string) string {
	for {
		if _, ok := reasons[name]; ok {
			return name
		}
		end := strings.LastIndexByte(name, '/')
		if end < 0 {
			return ""
		}
		name = name[:end]
	}
}

func (r report) bad() bool { return len(r.broken)+len(r.recovered)+len(r.unknown) > 0 }

func (r report) print(w io.Writer, suite string) {
	fmt.Fprintf(w, "\nsuite %s: %d tests pass with runc and kata\n", suite, len(r.both))
	for _, part := range []struct {
		title string
		names []string
	}{
		{"of these at the second try", r.late},
		{"do not pass with runc here", r.notOurs},
		{"pass with runc, fail with kata, and are listed", r.excepted},
		{"PASS WITH RUNC, FAIL WITH KATA", r.broken},
		{"LISTED IN exceptions.txt, BUT PASS", r.recovered},
		{"LISTED IN exceptions.txt, BUT ARE NO TESTS", r.unknown},
	} {
		if len(part.names) == 0 {
			continue
		}
		fmt.Fprintf(w, "%d %s:\n", len(part.names), part.title)
		for _, n := range part.names {
			if reason := r.reasons[listedAs(r.reasons, n)]; reason != "" {
				n += ": " + reason
			}
			fmt.Fprintln(w, "  "+n)
		}
	}
}
