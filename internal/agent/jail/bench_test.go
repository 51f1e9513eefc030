package jail

import (
	"testing"
)

// BenchmarkRun is the life of a container that does nothing.
func BenchmarkRun(b *testing.B) {
	for name, spares := range map[string]int{"cold": 0, "spare": 1} {
		b.Run(name, func(b *testing.B) {
			needRoot(b)
			j := New(Options{Reaper: reaper, Spares: spares})
			defer j.Close()
			s := newSpec(newRootfs(b), "true")
			for b.Loop() {
				b.StopTimer()
				if err := j.Fill(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				c, err := j.Create(b.Context(), Config{ID: "bench", Spec: s})
				if err != nil {
					b.Fatal(err)
				}
				if err := c.Start(b.Context()); err != nil {
					b.Fatal(err)
				}
				if code := c.Init().Child().ExitCode(); code != 0 {
					b.Fatalf("got exit code %d", code)
				}
				if err := c.Delete(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkExec is a further process in a container.
func BenchmarkExec(b *testing.B) {
	c := startSleeper(b, nil)
	for b.Loop() {
		p, err := c.Exec(b.Context(), ExecConfig{Process: process("true")})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Start(b.Context()); err != nil {
			b.Fatal(err)
		}
		<-p.Done()
	}
}
