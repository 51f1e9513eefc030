package harness

import (
	"encoding/json"
	"strings"
	"testing"
)

// TimeLine reads what `kata trace --json` has printed and returns the phases of each
// start, in order, with what they are parts of: "kata-proxy/boot/VMM". The starts are
// named as they are there: "", "CONTAINER" or "CONTAINER EXEC". Phases that are not
// within those that they are parts of are errors.
func TimeLine(t *testing.T, text string) map[string][]string {
	t.Helper()
	var doc struct {
		Version int
		Starts  []struct {
			Container, Exec string
			DurationMs      float64 `json:"duration_ms"`
			Phases          []struct {
				Name       string
				Depth      int
				StartMs    float64 `json:"start_ms"`
				DurationMs float64 `json:"duration_ms"`
				Open       bool
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil || doc.Version != 1 || len(doc.Starts) == 0 {
		t.Fatalf("time line: version %d, %d starts, %v: %s", doc.Version, len(doc.Starts), err, text)
	}
	const round = 0.01 // ms
	lines := map[string][]string{}
	for _, s := range doc.Starts {
		name := strings.TrimSpace(s.Container + " " + s.Exec)
		var path []string
		type span struct{ from, to float64 }
		within := []span{{0, 1e9}}
		for i, p := range s.Phases {
			if p.Depth > len(path) {
				t.Fatalf("start %q: %s has depth %d after %q", name, p.Name, p.Depth, path)
			}
			path, within = append(path[:p.Depth], p.Name), within[:p.Depth+1]
			whole := within[p.Depth]
			end := p.StartMs + p.DurationMs
			if p.DurationMs < 0 || p.StartMs < whole.from-round || end > whole.to+round {
				t.Errorf("start %q: %s (%v to %v ms) is not within %v", name, strings.Join(path, "/"), p.StartMs, end, whole)
			}
			if i == 0 && p.StartMs != 0 {
				t.Errorf("start %q begins at %v ms", name, p.StartMs)
			}
			if p.Open {
				t.Errorf("start %q: %s has not ended", name, strings.Join(path, "/"))
			}
			within = append(within, span{p.StartMs, end})
			lines[name] = append(lines[name], strings.Join(path, "/"))
		}
	}
	return lines
}

// InOrder tells of those that are not among the phases in that order.
func InOrder(t *testing.T, phases []string, want ...string) {
	t.Helper()
	rest := phases
	for _, w := range want {
		for len(rest) > 0 && rest[0] != w {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			t.Errorf("%q is missing, or in another order, in:\n%s", w, strings.Join(phases, "\n"))
			return
		}
	}
}
