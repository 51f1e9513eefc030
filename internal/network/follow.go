package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"google.golang.org/protobuf/proto"
)

// Tell passes a network on to the agent.
type Tell func(context.Context, *agentv1.Network) error

// Follower tells of the changes in a namespace until it is closed.
type Follower struct {
	a     *Attachment
	tell  Tell
	log   *slog.Logger
	watch *watch
	end   context.CancelFunc
	ended chan struct{}
}

// Follow tells how the namespace is, if that has changed since it was attached,
// and from then on when it changes. Only the first time is an error returned;
// later ones are in the log. The caller closes the follower, before the
// attachment.
func (a *Attachment) Follow(ctx context.Context, tell Tell, log *slog.Logger) (*Follower, error) {
	// Before the namespace is read, so that nothing comes in between.
	w, err := a.watch()
	if err != nil {
		return nil, err
	}
	f := &Follower{a: a, tell: tell, log: log, watch: w, ended: make(chan struct{})}
	if err := f.update(ctx); err != nil {
		return nil, errors.Join(err, w.close())
	}
	life, end := context.WithCancel(context.Background())
	f.end = end
	go f.follow(life) // Close waits for it
	return f, nil
}

// Close ends the following and waits for a tell that is under way.
func (f *Follower) Close() error {
	f.end()
	err := f.watch.close()
	<-f.ended
	return err
}

func (f *Follower) follow(ctx context.Context) {
	defer close(f.ended)
	told := false
	for {
		if err := f.watch.wait(); err != nil {
			if !errors.Is(err, os.ErrClosed) {
				f.log.Warn("changes of the network are not passed on any more", "error", err)
			}
			return
		}
		// A failure is told once, not with each event until it is over: the text
		// is the guest's, perhaps, and the log takes up memory.
		err := f.update(ctx)
		if err == nil {
			told = false
			continue
		}
		if !told && ctx.Err() == nil {
			f.log.Warn("the guest's network is not that of its namespace", "error", err)
		}
		told = true
	}
}

// update tells how the namespace is, if that is not how it was. An interface that
// is left out does not keep the others back.
func (f *Follower) update(ctx context.Context) error {
	var nw *agentv1.Network
	err := inNS(f.a.ns, func() (err error) {
		nw, err = f.a.refresh()
		return err
	})
	if err != nil {
		err = fmt.Errorf("read network namespace %s: %w", f.a.ns.Name(), err)
	}
	if aerr := inNS(f.a.ns, f.a.leaveAnswers); aerr != nil {
		f.log.Warn("names of the world outside are not resolved by the engine's name server", "error", aerr)
	}
	if nw == nil || proto.Equal(nw, f.a.told) {
		return err
	}
	begun := time.Now()
	if terr := f.tell(ctx, nw); terr != nil {
		return errors.Join(err, fmt.Errorf("tell the guest of its network: %w", terr))
	}
	f.a.told = nw
	var names []string
	for _, i := range nw.GetInterfaces() {
		names = append(names, i.GetName())
	}
	f.log.Info("the guest's network has changed", "interfaces", names, "dur", time.Since(begun))
	return err
}
