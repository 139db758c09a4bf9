package volantd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/volantvm/volant/daemon"
	"github.com/volantvm/volant/ipam"
	"github.com/volantvm/volant/store"
)

// Recover makes a database that volantd can start with of one that is damaged,
// or lost, and says on out what became of it. No VM is touched. On an error what
// was damaged or lost is as it was; a sound database may have VMs more.
func Recover(ctx context.Context, opt Options, out io.Writer) (err error) {
	if err := opt.check(); err != nil {
		return err
	}
	if err := checkRoot(os.Geteuid()); err != nil {
		return err
	}
	lock, err := lockData(opt.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	pool, err := ipam.NewPool(opt.Subnet, opt.HostIP)
	if err != nil {
		return err
	}
	driver, others := chooseDriver(ctx, opt)
	rec, err := store.Recover(ctx, filepath.Join(opt.DataDir, databaseFile), store.Options{})
	if err != nil {
		return err
	}
	found, err := recoverVMs(ctx, daemon.Config{
		Store: rec.Store, Driver: driver, Others: others, Pool: pool, DataDir: opt.DataDir, RuntimeDir: opt.RuntimeDir, Version: opt.Version, Log: opt.Log,
	})
	if err != nil {
		return errors.Join(err, rec.Abandon())
	}
	sound := rec.Sound
	kept, err := rec.Commit()
	if err != nil {
		return err
	}
	report(out, sound, kept, rec.Tables, found)
	return nil
}

// recoverVMs asks a daemon that does not run for the VMs that the host proves.
func recoverVMs(ctx context.Context, cfg daemon.Config) (found daemon.Recovered, err error) {
	d, err := daemon.New(cfg)
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.Recover(ctx)
}

func report(out io.Writer, sound bool, kept string, tables []store.SavedTable, found daemon.Recovered) {
	switch {
	case sound:
		fmt.Fprintln(out, "the database is sound")
	case kept == "":
		fmt.Fprintln(out, "there was no database; a new one was made")
	default:
		fmt.Fprintf(out, "the damaged database is kept as %s\n", kept)
	}
	if kept != "" && !slices.ContainsFunc(tables, func(t store.SavedTable) bool { return t.Saved > 0 || !t.Torn }) {
		fmt.Fprintln(out, "nothing of it could be read")
		tables = nil
	}
	for _, t := range tables {
		if kept == "" || t.Saved == 0 && t.Dropped == 0 && !t.Torn {
			continue
		}
		fmt.Fprintf(out, "table %s: %d rows saved", t.Name, t.Saved)
		if t.Dropped > 0 {
			fmt.Fprintf(out, ", %d unusable", t.Dropped)
		}
		if t.Torn {
			fmt.Fprint(out, "; a part could not be read, others may be lost")
		}
		fmt.Fprintln(out)
	}
	for _, list := range []struct {
		what string
		of   []string
	}{
		{"VM found running", found.Running}, {"VM found stopped", found.Stopped}, {"volume found", found.Volumes}, {"not understood, and moved to", found.Lost},
	} {
		for _, one := range list.of {
			fmt.Fprintf(out, "%s: %s\n", list.what, one)
		}
	}
	fmt.Fprintln(out, "start volantd now; volar vms list shows what it knows")
}
