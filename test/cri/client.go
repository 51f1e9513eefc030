// Package cri is a small client of the Kubernetes container runtime interface,
// for tests and benchmarks: the calls of cri-api as they are, and the streams for
// exec, attach and port-forward, which do not go through calls.
package cri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Client talks to one runtime.
type Client struct {
	runtime.RuntimeServiceClient

	conn *grpc.ClientConn
	dial DialFunc
}

// DialFunc connects to the runtime's streaming server, which may be in another
// network namespace.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Dial prepares a client for the socket at the path.
func Dial(socket string, streams DialFunc) (*Client, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", socket, err)
	}
	return &Client{RuntimeServiceClient: runtime.NewRuntimeServiceClient(conn), conn: conn, dial: streams}, nil
}

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Ready waits until both runtime and network are ready.
func (c *Client) Ready(ctx context.Context) error {
	for {
		r, err := c.Status(ctx, &runtime.StatusRequest{}, grpc.WaitForReady(true))
		if err == nil && ready(r.GetStatus()) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the runtime is not ready: %w: %v", errors.Join(ctx.Err(), err), r.GetStatus())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func ready(s *runtime.RuntimeStatus) bool {
	n := 0
	for _, c := range s.GetConditions() {
		if (c.Type == runtime.RuntimeReady || c.Type == runtime.NetworkReady) && c.Status {
			n++
		}
	}
	return n == 2
}
