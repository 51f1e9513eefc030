package cli

import (
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/seed-efd44b36/kata/internal/owner"
	"github.com/seed-efd44b36/kata/internal/template"
	"github.com/spf13/cobra"
)

func (a *app) templateCommand() *cobra.Command {
	long := "Make, list, verify and remove templates: saved virtual machines that sandboxes are\n" +
		"made from. They are made by themselves when they are missed (factory.enable_template)."
	return group("template", "Make, list, verify and remove saved virtual machines", long,
		a.templateCreate(), a.templateList(), a.templateVerify(), a.templateRemove())
}

func (a *app) templateCreate() *cobra.Command {
	var memory, cpus, nics int
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make the template for sandboxes of a size, if it is not there",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := a.guestImages(func(line string) { fmt.Fprintln(a.errOut, line) })
			if err != nil {
				return err
			}
			if _, err := b.Ensure(cmd.Context()); err != nil { // it may take long, so say it
				return err
			}
			key, err := owner.AskForTemplate(cmd.Context(), owner.Request{Config: a.conf, MemoryMiB: memory, CPUs: cpus, NICs: nics}, nil)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, key)
			return nil
		},
	}
	cmd.Flags().IntVarP(&memory, "memory", "m", 0, "`MiB` of the machine, rounded up to a power of two (default hypervisor.default_memory)")
	cmd.Flags().IntVar(&cpus, "cpus", 0, "virtual CPUs of the machine, rounded up to a power of two (default hypervisor.default_vcpus)")
	cmd.Flags().IntVar(&nics, "nics", 1, "network devices of the machine; 2 for `ctr run --cni` and Docker")
	return cmd
}

func (a *app) templateList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List templates, and how many warm clones of each wait",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			list, problems, err := owner.Store(a.conf).List()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 3, ' ', 0)
			fmt.Fprintln(w, "KEY\tMEMORY\tCPUS\tNICS\tMACHINE\tKERNEL\tCREATED\tUSED\tDISK\tWARM")
			warm := owner.Warm(a.conf)
			for _, t := range list {
				fmt.Fprintf(w, "%s\t%d MiB\t%d\t%d\t%s\t%s\t%s ago\t%s ago\t%d MiB\t%d\n",
					t.Key, t.MemoryMiB, t.CPUs, t.NICs, t.Machine, t.Kernel, age(t.Created), age(t.Used), t.Bytes>>20, warm[t.Key])
			}
			if err := w.Flush(); err != nil {
				return err
			}
			for _, p := range problems {
				fmt.Fprintf(a.errOut, "%s: %v; `kata template rm %s` removes it\n", p.Key, p.Err, p.Key)
			}
			return nil
		},
	}
}

func (a *app) templateVerify() *cobra.Command {
	return &cobra.Command{
		Use:   "verify [KEY...]",
		Short: "Read templates as a whole, all of them by default, and tell whether they are sound",
		RunE: func(_ *cobra.Command, keys []string) error {
			store := owner.Store(a.conf)
			if len(keys) == 0 {
				list, problems, err := store.List()
				if err != nil {
					return err
				}
				for _, t := range list {
					keys = append(keys, t.Key)
				}
				for _, p := range problems {
					if errors.Is(p.Err, template.ErrUnsound) {
						keys = append(keys, p.Key)
					}
				}
			}
			return eachKey(keys, func(key string) error {
				if err := store.Verify(key); err != nil {
					return fmt.Errorf("%w; `kata template rm %s` removes it", err, key)
				}
				fmt.Fprintln(a.out, key, "is sound")
				return nil
			})
		},
	}
}

func (a *app) templateRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "rm KEY...",
		Short: "Remove templates, and warm clones of them; sandboxes that were made from them go on",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, keys []string) error {
			return eachKey(keys, func(key string) error { return owner.RemoveTemplate(cmd.Context(), a.conf, key) })
		},
	}
}

// eachKey runs do for every key and tells of all failures.
func eachKey(keys []string, do func(key string) error) error {
	var errs []error
	for _, k := range keys {
		errs = append(errs, do(k))
	}
	return errors.Join(errs...)
}
