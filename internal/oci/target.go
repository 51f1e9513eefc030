package oci

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/seed-efd44b36/kata/internal/printable"
	"github.com/seed-efd44b36/kata/internal/proxy"
	"github.com/seed-efd44b36/kata/internal/sandbox/report"
)

// podType is the annotation by which the CRI tells what a container is for: the
// pod itself, of which it is the first, or work in it.
const podType = "io.kubernetes.cri.container-type"

// maxReason is how much of the reason of an end is shown, in bytes.
const maxReason = 2000

// target is what a person has named: a sandbox, or one container of it.
type target struct {
	sandbox   report.Sandbox
	container *report.Container // nil: the sandbox
}

// find finds what a person has named, by an id of a sandbox or container, or the
// first letters of one.
func (a *app) find(name string) (target, error) {
	st, c, err := report.Find(a.conf.Runtime.StateDir, name)
	return target{sandbox: st, container: c}, err
}

// dial finds it, and connects to its sandbox's owner. The client is the caller's.
func (a *app) dial(ctx context.Context, name string) (target, *proxy.Client, error) {
	t, err := a.find(name)
	if err != nil {
		return t, nil, err
	}
	c, err := proxy.Dial(ctx, a.conf.Runtime.StateDir, t.sandbox.ID)
	return t, c, err
}

// work is the container that is meant where one has to be: of a pod, the only one
// that runs beside that which stands for the pod.
func (t target) work() (report.Container, error) {
	if t.container != nil {
		return *t.container, nil
	}
	var running, ended []string
	one := -1
	for i, c := range t.sandbox.Containers {
		switch {
		case c.Annotations[podType] == "sandbox":
		case c.Status == report.Running:
			one, running = i, append(running, c.ID)
		case c.Exit != nil && c.Exit.Reason != "":
			ended = append(ended, fmt.Sprintf("; container %s ended: %s", c.ID, printable.Text(c.Exit.Reason, maxReason)))
		}
	}
	switch len(running) {
	case 0:
		slices.Sort(ended)
		return report.Container{}, fmt.Errorf("no container runs in sandbox %s%s", t.sandbox.ID, strings.Join(slices.Compact(ended), ""))
	case 1:
		return t.sandbox.Containers[one], nil
	}
	return report.Container{}, fmt.Errorf("sandbox %s has several containers, name one of them: %s", t.sandbox.ID, strings.Join(running, ", "))
}

// work finds the container that a person means who wants to work in it.
func (a *app) work(name string) (sandbox string, c report.Container, err error) {
	t, err := a.find(name)
	if err == nil {
		c, err = t.work()
	}
	return t.sandbox.ID, c, err
}
