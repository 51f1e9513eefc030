package shim

import (
	"context"
	"encoding/json"
	"fmt"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	agentv1 "github.com/seed-efd44b36/kata/api/agent/v1"
	"github.com/seed-efd44b36/kata/internal/sandbox"
	"github.com/seed-efd44b36/kata/internal/shim/metrics"
	"github.com/seed-efd44b36/kata/internal/shim/publisher"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// cgroupMount is where hosts mount cgroups.
const cgroupMount = "/sys/fs/cgroup"

// unifiedHost tells whether the host has cgroup version 2 alone.
func unifiedHost() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroupMount, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// Update changes the limits of a container.
func (s *service) Update(ctx context.Context, r *task.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, err := s.find(r.GetID())
	if err != nil {
		return nil, refuse(err)
	}
	var res specs.LinuxResources
	if err := json.Unmarshal(r.GetResources().GetValue(), &res); err != nil {
		return nil, refuse(fmt.Errorf("update container %s: its resources: %w: %w", r.GetID(), sandbox.ErrInvalid, err))
	}
	if err := c.c.Update(ctx, &res); err != nil {
		return nil, refuse(err)
	}
	return &emptypb.Empty{}, nil
}

// Stats tells what a container uses, in the form of the host's cgroup version.
func (s *service) Stats(ctx context.Context, r *task.StatsRequest) (*task.StatsResponse, error) {
	c, err := s.find(r.GetID())
	if err != nil {
		return nil, refuse(err)
	}
	st, err := c.c.Stats(ctx)
	if err != nil {
		return nil, refuse(err)
	}
	a, err := packMetrics(st)
	if err != nil {
		return nil, refuse(err)
	}
	return &task.StatsResponse{Stats: a}, nil
}

// packMetrics makes a message of such figures in the form of the host's cgroup
// version.
func packMetrics(st *agentv1.StatsContainerResponse) (*anypb.Any, error) {
	if unifiedHost() {
		return publisher.Pack(metrics.V2(st))
	}
	return publisher.Pack(metrics.V1(st))
}
