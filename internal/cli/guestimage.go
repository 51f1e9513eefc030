package cli

import (
	"fmt"
	"log/slog"
	"text/tabwriter"

	"github.com/seed-efd44b36/kata/internal/guestimage"
	"github.com/seed-efd44b36/kata/internal/program"
	"github.com/spf13/cobra"
)

func (a *app) imageCommand() *cobra.Command {
	long := "Build and list guest images: the kernel and initrd that virtual machines boot.\n" +
		"Container images are listed by `kata images`."
	return group("image", "Build and list guest images (kernel and initrd of the virtual machines)", long, &cobra.Command{
		Use:         "build",
		Short:       "Build the guest image for this configuration, if it is not there",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{anyUser: "true"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := a.guestImages(func(line string) { fmt.Fprintln(a.errOut, line) })
			if err != nil {
				return err
			}
			img, err := b.Ensure(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "kernel  %s (%s)\n        %s\ninitrd  %s\n", img.Kernel.Version, img.Kernel.Source, img.Kernel.VMLinux, img.Initrd)
			return nil
		},
	}, &cobra.Command{
		Use:         "list",
		Short:       "List guest images",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{anyUser: "true"},
		RunE: func(*cobra.Command, []string) error {
			images, err := guestimage.List(a.conf.Runtime.CacheDir)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 3, ' ', 0)
			fmt.Fprintln(w, "KEY\tKERNEL\tSOURCE\tCREATED\tINITRD")
			for _, i := range images {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s ago\t%s\n", short(i.Key), i.Kernel.Version, i.Kernel.Source, age(i.Created), i.Initrd)
			}
			return w.Flush()
		},
	})
}

// guestImages makes guest images with the agent that belongs to this program,
// telling the person what takes long.
func (a *app) guestImages(progress func(string)) (*guestimage.Builder, error) {
	agent, err := program.Find("kata-agent")
	if err != nil {
		return nil, err
	}
	return &guestimage.Builder{
		CacheDir: a.conf.Runtime.CacheDir, Agent: agent,
		Kernel: a.conf.Hypervisor.Kernel, Modules: a.conf.Hypervisor.KernelModules,
		Log: slog.New(slog.DiscardHandler), Progress: progress,
	}, nil
}
