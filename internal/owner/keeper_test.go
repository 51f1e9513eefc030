package owner

import (
	"testing"
	"time"

	"github.com/seed-efd44b36/kata/internal/warm"
)

func TestSpare(t *testing.T) {
	t.Parallel()
	now := time.Now()
	clone := func(id, key string, age time.Duration) warm.Waiting {
		return warm.Waiting{ID: id, Key: key, Since: now.Add(-age)}
	}
	for name, tt := range map[string]struct {
		all  []warm.Waiting
		want string
	}{
		"one of the same kind":         {[]warm.Waiting{clone("1", "k", time.Hour)}, ""},
		"one of another, new":          {[]warm.Waiting{clone("1", "other", time.Second)}, ""},
		"one of another, old":          {[]warm.Waiting{clone("1", "other", time.Hour)}, "1"},
		"another has more, the oldest": {[]warm.Waiting{clone("1", "other", time.Second), clone("2", "other", 2*time.Second)}, "2"},
		"another has one more":         {[]warm.Waiting{clone("1", "other", 1), clone("2", "other", 2), clone("3", "k", 3)}, ""},
		"a third has two more":         {[]warm.Waiting{clone("1", "other", 9), clone("2", "third", 1), clone("3", "third", 2)}, "2 or 3"},
	} {
		w, ok := spare(tt.all, "k", now)
		if ok != (tt.want != "") || ok && tt.want != "2 or 3" && w.ID != tt.want || tt.want == "2 or 3" && w.Key != "third" {
			t.Errorf("%s: got %q, %v; want %q", name, w.ID, ok, tt.want)
		}
	}
}
