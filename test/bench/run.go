package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/seed-efd44b36/kata/test/bench/result"
	"github.com/seed-efd44b36/kata/test/bench/subject"
)

// run is one in the making.
type run struct {
	options

	rig      *subject.Rig
	report   *result.Report
	progress io.Writer
	pss      map[string]float64 // of one container in MiB, by subject
}

// job is a measurement of some subjects, all in turns.
type job struct {
	measurement

	// wants tells whether a subject, by its name, is to be measured.
	wants func(name string) bool
}

// plan is what the options ask for.
func (o options) plan(b result.Budget) []job {
	if o.check {
		return jobsOf(b.Limits)
	}
	var jobs []job
	for _, m := range measurements() {
		if o.rounds(m) > 0 && (len(o.only) == 0 || slices.ContainsFunc(o.only, m.called)) {
			jobs = append(jobs, job{m, o.wants})
		}
	}
	return jobs
}

// called tells whether a name is that of the measurement, or of all such.
func (m measurement) called(name string) bool {
	return m.Name == name || strings.HasPrefix(m.Name, name+"-")
}

// takes tells whether a subject of this name can be measured.
func (m measurement) takes(name string) bool {
	_, front, _ := strings.Cut(name, "/")
	return slices.Contains(m.fronts, front)
}

// jobsOf are those that the lines of a budget need.
func jobsOf(lines []result.Line) []job {
	var jobs []job
	for _, m := range measurements() {
		own := slices.DeleteFunc(slices.Clone(lines), func(l result.Line) bool { return l.Measurement != m.Name })
		if len(own) == 0 {
			continue
		}
		jobs = append(jobs, job{m, func(name string) bool {
			return slices.ContainsFunc(own, func(l result.Line) bool { return l.Holds(name) || l.To == name })
		}})
	}
	return jobs
}

// wants tells whether a subject is asked for.
func (o options) wants(name string) bool {
	return len(o.subjects) == 0 || slices.ContainsFunc(o.subjects, func(p string) bool {
		ok, _ := path.Match(p, name)
		return ok || strings.HasPrefix(name, p+"/")
	})
}

// rounds is how often a measurement is made.
func (o options) rounds(m measurement) int {
	n := m.full
	switch {
	case o.check:
		n = max(m.quick, 1) // the budget asks for it
	case o.quick:
		n = m.quick
	}
	if o.n > 0 && n > 0 {
		n = o.n
	}
	return n
}

// do does the jobs, one after the other.
func (r *run) do(ctx context.Context, jobs []job) error {
	for _, j := range jobs {
		if err := r.one(ctx, j); err != nil {
			return fmt.Errorf("%s: %w", j.Name, err)
		}
	}
	return nil
}

// one measures all subjects in turns: a machine that slows down slows them all.
// One that fails is told of, and left out of the rest; the others go on.
func (r *run) one(ctx context.Context, j job) (err error) {
	subjects := slices.DeleteFunc(slices.Clone(r.rig.Subjects), func(s *subject.Subject) bool {
		return !j.wants(s.String()) || !j.takes(s.String())
	})
	standing := map[*subject.Subject][]subject.Container{}
	defer func() {
		err = errors.Join(err, removeMany(ctx, slices.Concat(slices.Collect(maps.Values(standing))...)))
	}()
	try := func(act func(*subject.Subject) error) error {
		subjects = slices.DeleteFunc(subjects, func(s *subject.Subject) bool {
			if ctx.Err() != nil {
				return true
			}
			err := act(s)
			if err != nil && ctx.Err() == nil {
				r.skip(s.String(), j.Name, err)
			}
			return err != nil
		})
		return ctx.Err()
	}
	if j.standing > 0 {
		r.step("%s: starting containers", j.Name)
		if err := try(func(s *subject.Subject) error {
			list, failures := startMany(ctx, s, j.standing, j.standing)
			standing[s] = list
			return errors.Join(failures...)
		}); err != nil {
			return err
		}
	}
	rounds := r.rounds(j.measurement)
	for round := range rounds {
		if rounds <= 5 || round%5 == 0 {
			r.step("%s: round %d of %d, %d subjects", j.Name, round+1, rounds, len(subjects))
		}
		if err := try(func(s *subject.Subject) error {
			if j.standing == 0 {
				if err := r.settle(ctx); err != nil {
					return err
				}
			}
			f, err := j.measure(ctx, trial{Subject: s, run: r, containers: standing[s]})
			for _, u := range j.units {
				if v, ok := f[u.Name]; ok && err == nil {
					r.report.Add(j.Name, u, s.String(), result.Sample{Round: round, Value: v})
				}
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// errTooLarge is why something is not tried.
var errTooLarge = errors.New("too large for this machine")

// skip records why a subject is left out of something. That is a failure when it
// is ours, and could have been.
func (r *run) skip(name, measurement string, err error) {
	r.step("%s, %s: %v", name, measurement, err)
	s := result.Skip{Subject: name, Measurement: measurement, Why: fmt.Sprintf("%.500s", strings.Join(strings.Fields(err.Error()), " "))}
	s.Failed = (strings.HasPrefix(name, "kata-") || name == subject.QEMU) && !errors.Is(err, errTooLarge)
	r.report.Skipped = append(r.report.Skipped, s)
}

func (r *run) step(format string, args ...any) { fmt.Fprintf(r.progress, format+"\n", args...) }

// cpu is the processor time of everything but this program, in seconds.
func (r *run) cpu() (float64, error) { return r.rig.Account.CPU() }

// settleTimeout is for what does not become quiet.
const settleTimeout = 30 * time.Second

// settle waits until what was started and ended before does nothing any more.
func (r *run) settle(ctx context.Context) error { return r.rig.Account.Settle(ctx, settleTimeout) }

// learn notes what a container takes.
func (r *run) learn(s *subject.Subject, pss float64) {
	r.pss[s.String()] = max(r.pss[s.String()], pss)
}

// fits tells whether n containers fit into the memory of the machine; it starts
// one to know, when it does not.
func (r *run) fits(ctx context.Context, s *subject.Subject, n int) error {
	const part = 0.7 // of what is available may be taken
	if n <= 1 {
		return nil
	}
	if r.pss[s.String()] == 0 {
		if _, err := parallel(ctx, trial{Subject: s, run: r}, 1); err != nil {
			return err
		}
	}
	have, err := available()
	if err != nil {
		return err
	}
	if need := float64(n) * r.pss[s.String()]; need > part*have {
		return fmt.Errorf("%w: %d of %.0f MiB each need %.1f GiB, %.1f GiB are available, of which %.0f %% may be taken",
			errTooLarge, n, r.pss[s.String()], need/1024, have/1024, part*100)
	}
	return nil
}

// again measures once more what some verdicts are about.
func (r *run) again(ctx context.Context, doubtful []result.Verdict) error {
	var lines []result.Line
	for _, v := range doubtful {
		l := v.Line
		l.Subject = v.Subject
		lines = append(lines, l)
	}
	jobs := jobsOf(lines)
	for _, j := range jobs {
		var names []string
		for _, s := range r.rig.Subjects {
			if j.wants(s.String()) {
				names = append(names, s.String())
			}
		}
		r.report.Forget(j.Name, names)
	}
	return r.do(ctx, jobs)
}
