package publisher

import (
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	events "github.com/containerd/containerd/api/events"
)

// TestPublishAfterClose: a handler that ends late loses its event, and does not
// end the shim.
func TestPublishAfterClose(t *testing.T) {
	t.Parallel()
	p := New(filepath.Join(t.TempDir(), "none"), "test", slog.New(slog.DiscardHandler))
	p.end() // nobody is there to wait for
	var late sync.WaitGroup
	for range 4 {
		late.Go(func() {
			for range 100 {
				p.Publish(&events.TaskStart{})
			}
		})
	}
	p.Close()
	late.Wait()
	p.Publish(&events.TaskStart{})
}
