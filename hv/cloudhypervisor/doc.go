// Package cloudhypervisor drives Cloud Hypervisor 52 and newer, which needs KVM.
//
// One cloud-hypervisor process runs one machine. It is spoken to by HTTP over a
// Unix socket in the incarnation's directory, which holds:
//
//	record.json       what Find and Attach need (package vmm)
//	exit.json         how the machine ended, once it has
//	api.sock          the VMM's API
//	events.json       what happened, as the VMM wrote it down
//	vmm.log           the VMM's own words
//	io/console.sock   the guest's serial port
//	io/agent.sock     the VMM's end of the guest's vsock device
//	io/agent.sock_N   where the guest's connections to port N of the host come
//	restore/          what a restore is made from, while it is made
//
// The directory io is all that Landlock lets the VMM write to, beside its disks
// and the directories of Spec.Reach; so it holds nothing else. Seccomp is on always.
// TAPs are opened here and passed on: the VMM needs no capability.
//
// # What is true
//
// The pidfd tells whether the VMM lives; an API that does not answer in time is
// busy, not dead, for all its calls are served by one thread. Exit status 0 says
// nothing. Events are hints: the file is read leniently, and what is missing in
// it is made up for by the state that the API tells.
//
// # How a machine begins and ends
//
// The configuration is sent by vm.create, which checks little; vm.boot makes the
// devices. A boot that fails is never tried again: Cloud Hypervisor drops the
// devices that failed from its configuration, and would run without them. The
// process is killed.
//
// A guest that powers off ends the process. A guest that resets, or panics, is
// started anew within the same process: the driver kills it when it sees so, by
// the console's stream, which breaks, or by the next look at the events. While
// no daemon is attached nobody does, and the guest may begin again and again
// until one is.
//
// # Snapshots
//
// A snapshot is config.json, state.json and memory-ranges, which Cloud Hypervisor
// writes and does not sync, and vmm's snapshot.json. For a restore the configuration
// is edited, and everything in it that is not understood stays as it is, byte by
// byte. A template's memory is one memory zone that is a shared mapping of a file;
// its forks map the file privately, so that a fork begins with no memory of its own.
// Whoever forks as another user than the template's must see that the file can be
// opened by it, for reading and writing.
//
// Only the version that took a snapshot restores it. Version 52 restores no memory
// on demand here: what is snapshotted of such a machine is corrupt. From version 53
// on such a machine cannot be snapshotted before all of its memory was read.
//
// # Plugging
//
// A device is gone when the guest has let go of it: the configuration in vm.info is
// without it at once, the device tree only then. It is asked for once.
//
// Memory grows by virtio-mem, in blocks of 2 MiB up to a limit that is a multiple of
// 128 MiB above what the machine begins with, and shrinks again. Memory that is a
// file does neither.
//
// # What is lost
//
// Up to version 52, console output while no daemon is attached is discarded;
// later ones keep some of it. vmm.log is cut off, and events.json given back to
// the file system, at a limit while a daemon is attached.
package cloudhypervisor
