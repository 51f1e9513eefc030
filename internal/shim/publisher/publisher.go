// Package publisher tells containerd what happens to tasks, in order, also to one
// that is away for a while.
package publisher

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	events "github.com/containerd/containerd/api/events"
	forward "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// maxEvents are kept while containerd does not answer.
	maxEvents = 4096
	// publishTimeout bounds one attempt to publish one event.
	publishTimeout = 5 * time.Second
	// retryEvery is how long after a failed attempt comes the next.
	retryEvery = time.Second
	// keepTrying is how old an event may get: a containerd that starts again
	// asks for the state of everything itself.
	keepTrying = 2 * time.Minute
	// lastWords is what the events that are left may take at the end.
	lastWords = 3 * time.Second
)

// Publisher publishes events. What is published while containerd is away is told
// later. It is safe for concurrent use.
type Publisher struct {
	address, namespace string
	log                *slog.Logger
	queue              chan *types.Envelope // never closed: a late handler may still publish
	open               context.Context      // events are taken
	shut               context.CancelFunc
	life               context.Context // events are sent
	end                context.CancelFunc
	worker             sync.WaitGroup

	client *ttrpc.Client // of the worker alone
}

// New returns a publisher to the containerd that takes events at address, the path
// of a socket. The caller closes it.
func New(address, namespace string, log *slog.Logger) *Publisher {
	p := &Publisher{address: address, namespace: namespace, log: log, queue: make(chan *types.Envelope, maxEvents)}
	p.open, p.shut = context.WithCancel(context.Background())
	p.life, p.end = context.WithCancel(context.Background())
	p.worker.Go(p.work)
	return p
}

// Publish queues an event. It does not wait for containerd.
func (p *Publisher) Publish(event proto.Message) {
	a, err := Pack(event)
	if err != nil {
		p.log.Error("event is lost", "error", err)
		return
	}
	e := &types.Envelope{Timestamp: timestamppb.Now(), Namespace: p.namespace, Topic: topic(event), Event: a}
	if p.open.Err() != nil {
		p.log.Warn("event is lost: the shim has ended", "topic", e.GetTopic())
		return
	}
	select {
	case p.queue <- e:
	default:
		p.log.Error("event is lost: containerd takes none", "topic", e.GetTopic())
	}
}

// Pack wraps a message as containerd's typeurl package does: without a prefix
// before the name of the type.
func Pack(m proto.Message) (*anypb.Any, error) {
	b, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: b}, nil
}

// topic is what containerd files an event under.
func topic(event proto.Message) string {
	switch event.(type) {
	case *events.TaskCreate:
		return "/tasks/create"
	case *events.TaskStart:
		return "/tasks/start"
	case *events.TaskOOM:
		return "/tasks/oom"
	case *events.TaskExit:
		return "/tasks/exit"
	case *events.TaskDelete:
		return "/tasks/delete"
	case *events.TaskExecAdded:
		return "/tasks/exec-added"
	case *events.TaskExecStarted:
		return "/tasks/exec-started"
	case *events.TaskPaused:
		return "/tasks/paused"
	case *events.TaskResumed:
		return "/tasks/resumed"
	default:
		return "/tasks/?"
	}
}

// Close publishes what is queued, as far as containerd takes it now, and ends.
// What is published after it is lost.
func (p *Publisher) Close() {
	p.shut()
	stop := time.AfterFunc(lastWords, p.end)
	p.worker.Wait()
	stop.Stop()
	p.end()
}

func (p *Publisher) work() {
	defer p.disconnect()
	for {
		select {
		case e := <-p.queue:
			p.deliver(e)
			continue
		case <-p.open.Done():
		}
		for { // the last ones
			select {
			case e := <-p.queue:
				p.deliver(e)
			default:
				return
			}
		}
	}
}

// deliver sends an event, again and again until it is too old.
func (p *Publisher) deliver(e *types.Envelope) {
	for err := p.send(e); err != nil; err = p.send(e) {
		p.disconnect()
		if time.Since(e.GetTimestamp().AsTime()) > keepTrying || p.life.Err() != nil {
			p.log.Warn("event is lost", "topic", e.GetTopic(), "error", err)
			return
		}
		select {
		case <-time.After(retryEvery):
		case <-p.life.Done():
		}
	}
}

func (p *Publisher) send(e *types.Envelope) error {
	ctx, cancel := context.WithTimeout(p.life, publishTimeout)
	defer cancel()
	if p.client == nil {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", p.address)
		if err != nil {
			return fmt.Errorf("connect to containerd: %w", err)
		}
		p.client = ttrpc.NewClient(conn)
	}
	_, err := forward.NewTTRPCEventsClient(p.client).Forward(ctx, &forward.ForwardRequest{Envelope: e})
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}

func (p *Publisher) disconnect() {
	if p.client != nil {
		_ = p.client.Close()
		p.client = nil
	}
}
