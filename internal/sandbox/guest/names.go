package guest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/resolver"
)

// namesTimeout is what the agent may take to make its sockets.
const namesTimeout = 10 * time.Second

// names lets the guest ask the name server in the network namespace.
type names struct {
	mu   sync.Mutex
	end  context.CancelFunc // guarded by mu; nil until there is something to end
	work sync.WaitGroup
}

func (n *names) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.end != nil {
		n.end()
	}
	n.work.Wait()
}

// ResolveNames lets the guest ask the name server that is in the network namespace, if
// there is one and it cannot yet, until Close. The namespace stays open so long. What
// fails is told in the log: there are addresses without names.
func (g *Guest) ResolveNames(ctx context.Context, ns *os.File, log *slog.Logger) {
	g.names.mu.Lock()
	defer g.names.mu.Unlock()
	if g.names.end != nil {
		return
	}
	if err := g.resolveNames(ctx, ns, log); err != nil {
		log.Warn("names that the engine knows are not resolved in the guest", "error", err)
	}
}

func (g *Guest) resolveNames(ctx context.Context, ns *os.File, log *slog.Logger) error {
	if present, err := resolver.Present(ns); err != nil || !present {
		return err
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	ctx, cancel := context.WithTimeout(ctx, namesTimeout)
	defer cancel()
	st, err := g.link.Open(ctx, link.Header{Kind: link.KindNames})
	if err != nil {
		end()
		return err
	}
	if err := connected(ctx, st); err != nil {
		end()
		_ = st.Close()
		return fmt.Errorf("the agent's answer: %w", err)
	}
	g.names.end = end
	g.names.work.Go(func() {
		defer end()
		if err := resolver.Serve(life, st, ns); err != nil {
			log.Warn("names that the engine knows are not resolved in the guest any more", "error", err)
		}
	})
	return nil
}
