package guest

import (
	"bufio"
	"context"
	"io"
	"log/slog"

	"github.com/seed-efd44b36/kata/internal/link"
	"github.com/seed-efd44b36/kata/internal/printable"
)

// Bounds of what a guest may put into the host's log.
const (
	maxGuestLog  = 4 << 20 // bytes in the life of a sandbox
	maxGuestLine = 2 << 10
)

// FollowLog puts the agent's log into ours, quoted, until the guest ends or has
// said too much.
func (g *Guest) FollowLog(ctx context.Context, log *slog.Logger) {
	st, err := g.link.Open(ctx, link.Header{Kind: link.KindLog})
	if err != nil {
		log.Debug("no log of the guest", "error", err)
		return
	}
	defer st.Close()
	lines := bufio.NewScanner(io.LimitReader(st, maxGuestLog))
	lines.Buffer(make([]byte, 0, maxGuestLine), maxGuestLine)
	for lines.Scan() {
		log.Debug("guest", "line", printable.Text(lines.Text(), maxGuestLine))
	}
}
