package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/hv"
)

// QEMU saves a machine by migrating it into a file, and restores it by a
// migration from there. Its stream goes through a pipe of which this process
// holds the other end, in all versions: "file:" came with 8.2, a file behind "fd:"
// is deprecated since 9.1, and "exec:" wants a shell, which the sandbox denies. A
// pipe needs no file to be within QEMU's reach, and when this process dies, QEMU
// sees a migration that failed.

const (
	// streamName is what QEMU knows its end of the pipe by.
	streamName = "state"
	// streamBuffer is how much is copied at a time, and what a pipe holds, in bytes.
	streamBuffer = 1 << 20
	// streamSpeed is a bandwidth without effect, in bytes per second: by default a
	// stopped machine is written at 128 MiB a second too.
	streamSpeed = 1 << 40
	// migrationPoll is how often a migration is looked at when no event tells of
	// its progress.
	migrationPoll = 100 * time.Millisecond
	// cancelTimeout bounds the end of a migration that is to be broken off.
	cancelTimeout = 10 * time.Second
)

// migration prepares one. In that of a template the memory, which is in a file,
// does not travel. A restored machine takes its disks when it is resumed, and
// fails to be if it cannot have them: at the end of a migration QEMU would only
// write to its log that it cannot, and run.
//
// A restored guest is not told to announce itself to its network
// (VIRTIO_NET_S_ANNOUNCE). It would do so with the address of the machine that the
// snapshot was taken of, before it learns its own, and Linux from 6.11 on can
// come to a standstill over it: virtnet_close holds the lock that it waits in
// virtnet_config_changed_work for, while that one waits for it. A fork whose NIC
// was taken down in the first second hung so in 2 of 25 runs of a test.
func (m *machine) migration(ctx context.Context, template bool) error {
	type capability struct {
		Name  string `json:"capability"`
		State bool   `json:"state"`
	}
	err := m.monitor.run(ctx, "migrate-set-capabilities", struct {
		Capabilities []capability `json:"capabilities"`
	}{[]capability{{"events", true}, {"late-block-activate", true}, {ignoreShared, template}}}, nil)
	if err != nil {
		return err
	}
	return m.monitor.run(ctx, "migrate-set-parameters", struct {
		Speed         uint64 `json:"max-bandwidth"`
		Announcements uint64 `json:"announce-rounds"`
	}{Speed: streamSpeed}, nil)
}

// ignoreShared is the capability not to migrate memory that is shared with
// others. Its name says that it may change.
const ignoreShared = "x-ignore-shared"

// uri is the argument of a migration by the pipe.
type uri struct {
	URI string `json:"uri"`
}

func streamURI() uri { return uri{"fd:" + streamName} }

// migrated waits until the migration has ended.
func (m *machine) migrated(ctx context.Context) error {
	for {
		var out struct {
			Status string `json:"status"`
			Why    string `json:"error-desc"`
		}
		if err := m.monitor.run(ctx, "query-migrate", nil, &out); err != nil {
			return err
		}
		switch out.Status {
		case "completed":
			// A moment later the machine has come to rest, too.
			if status, err := m.status(ctx); err != nil || status != "finish-migrate" && status != "inmigrate" {
				return err
			}
		case "failed", "cancelled":
			return fmt.Errorf("the migration has %s: %s", out.Status, out.Why)
		}
		select {
		case <-m.moved:
		case <-time.After(migrationPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// onMigration is called by the monitor's reader when a migration has changed its
// status.
func (m *machine) onMigration() {
	select {
	case m.moved <- struct{}{}:
	default:
	}
}

// save migrates the paused machine into the new file at path.
func (m *machine) save(ctx context.Context, path string, template bool) (err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := m.migration(ctx, template); err != nil {
		return err
	}
	r, w, err := pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = m.monitor.pass(ctx, streamName, w)
	w.Close()
	if err != nil {
		return err
	}
	if err := m.monitor.run(ctx, "migrate", streamURI(), nil); err != nil {
		if strings.Contains(err.Error(), "non-migratable") {
			err = fmt.Errorf("%w: %w", hv.ErrUnsupported, err)
		}
		return errors.Join(err, m.forget())
	}
	copied := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{file}, r, make([]byte, streamBuffer))
		r.Close() // QEMU's next write fails
		copied <- err
	}()
	err = m.migrated(ctx)
	if err != nil {
		r.Close()
	}
	cerr := <-copied
	if errors.Is(cerr, os.ErrClosed) {
		cerr = nil // err says why
	}
	if cerr != nil {
		return fmt.Errorf("write %s: %w", path, cerr) // the migration failed for it
	}
	return err
}

// load migrates the machine, which waits for it, from the file at path.
func (m *machine) load(ctx context.Context, path string, template bool) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := m.migration(ctx, template); err != nil {
		return err
	}
	r, w, err := pipe()
	if err != nil {
		return err
	}
	err = m.monitor.pass(ctx, streamName, r)
	r.Close()
	if err != nil {
		return errors.Join(err, w.Close())
	}
	if err := m.monitor.run(ctx, "migrate-incoming", streamURI(), nil); err != nil {
		return errors.Join(err, w.Close())
	}
	copied := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(w, struct{ io.Reader }{file}, make([]byte, streamBuffer))
		copied <- errors.Join(err, w.Close())
	}()
	err = m.migrated(ctx)
	w.Close() // what QEMU has not read by now it does not want; whoever copies may have closed it before
	if cerr := <-copied; err == nil && cerr != nil && !errors.Is(cerr, os.ErrClosed) {
		return fmt.Errorf("read %s: %w", path, cerr)
	}
	return err
}

// pipe returns one that is as large as can be.
func pipe() (r, w *os.File, err error) {
	r, w, err = os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	// A smaller one only takes longer: /proc/sys/fs/pipe-max-size bounds it.
	_, _ = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, streamBuffer)
	return r, w, nil
}

// forget takes QEMU's end of the pipe back, which no migration has used.
func (m *machine) forget() error {
	ctx, cancel := context.WithTimeout(context.Background(), cancelTimeout)
	defer cancel()
	return m.monitor.run(ctx, "closefd", struct {
		Name string `json:"fdname"`
	}{streamName}, nil)
}

// breakOff ends a migration that may be under way, and waits until QEMU has
// given it up. The machine is then as it was before.
func (m *machine) breakOff() error {
	ctx, cancel := context.WithTimeout(context.Background(), cancelTimeout)
	defer cancel()
	if err := m.monitor.run(ctx, "migrate_cancel", nil, nil); err != nil {
		if m.exited(ctx) {
			return hv.ErrGone
		}
		return err
	}
	for {
		var out struct {
			Status string `json:"status"`
		}
		if err := m.monitor.run(ctx, "query-migrate", nil, &out); err != nil {
			return err
		}
		switch out.Status {
		case "", "none", "failed", "cancelled", "completed":
			return nil
		}
		select {
		case <-m.moved:
		case <-time.After(migrationPoll):
		}
	}
}
