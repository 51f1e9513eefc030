package subject

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pods is the CRI, with one container in each pod.
type pods struct {
	*engine
	handler string
}

// once measures until there is a line in the container's log.
func (p *pods) once(ctx context.Context) (Start, error) {
	start := time.Now()
	c, err := p.stay(ctx)
	if err != nil {
		return Start{}, err
	}
	first := time.Since(start).Seconds()
	err = c.Remove(ctx)
	return Start{First: first, Whole: time.Since(start).Seconds()}, err
}

// stay starts a pod with one container, which writes a word and stays.
func (p *pods) stay(ctx context.Context) (_ Container, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	name := p.rig.next()
	own := &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		LogDirectory: filepath.Join(p.logs, name),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    p.CgroupParent,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: own},
		},
	}
	sandbox, err := p.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: p.handler})
	if err != nil {
		return nil, fmt.Errorf("run pod: %w", err)
	}
	made := &pod{engine: p.engine, id: sandbox.PodSandboxId}
	defer func() {
		if err != nil {
			err = errors.Join(err, made.Remove(ctx))
		}
	}()
	created, err := p.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: made.id, SandboxConfig: config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "main"},
			Image:    &cri.ImageSpec{Image: p.image},
			Command:  []string{"sh", "-c", "echo started; exec sleep 100000"},
			LogPath:  "log",
			Mounts:   []*cri.Mount{{ContainerPath: Volume, HostPath: p.rig.volume()}},
			Linux: &cri.LinuxContainerConfig{
				Resources:       &cri.LinuxContainerResources{},
				SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: own},
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	made.container = created.ContainerId
	if _, err := p.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.container}); err != nil {
		return nil, fmt.Errorf("start container: %w", err)
	}
	if err := filled(ctx, filepath.Join(config.LogDirectory, "log")); err != nil {
		return nil, fmt.Errorf("log of the container: %w", err)
	}
	return made, nil
}

// filled waits until there is something in the file.
func filled(ctx context.Context, file string) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		switch st, err := os.Stat(file); {
		case err == nil && st.Size() > 0:
			return nil
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// pod is one that runs.
type pod struct {
	*engine
	id, container string
}

// Exec is what a probe does.
func (p *pod) Exec(ctx context.Context, out io.Writer, command ...string) error {
	r, err := p.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: p.container, Cmd: command, Timeout: 120})
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	if r.ExitCode != 0 {
		return fmt.Errorf("exec: exit code %d: %s", r.ExitCode, r.Stderr)
	}
	_, err = out.Write(r.Stdout)
	return err
}

// Remove implements [Container].
func (p *pod) Remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	_, serr := p.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id})
	_, rerr := p.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
	return errors.Join(serr, rerr)
}

// Address is the pod's.
func (p *pod) Address(ctx context.Context) (string, error) {
	r, err := p.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		return "", fmt.Errorf("address of a pod: %w", err)
	}
	return r.GetStatus().GetNetwork().GetIp(), nil
}

// Outside runs load where the bridge of the pods is.
func (p *pod) Outside(ctx context.Context, args ...string) error {
	load := filepath.Join(p.rig.volume(), path.Base(Load))
	return finish(exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + p.network.Path, load}, args...)...))
}
