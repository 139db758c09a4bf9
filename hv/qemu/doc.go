// Package qemu drives QEMU's microvm machine, with KVM or in software
// emulation (TCG). It is the driver that works everywhere, so that every test
// can boot real machines.
//
// One qemu-system-x86_64 process runs one machine. It is spoken to by QMP over
// a Unix socket in the incarnation's directory, which holds:
//
//	record.json   what Find and Attach need (package vmm)
//	exit.json     how the machine ended, once it has
//	qmp.sock      the driver's monitor; it serves one client at a time
//	debug.sock    a second monitor for people, whose output QEMU also appends to
//	events.log    the journal: what happened while no daemon was there
//	machine.json  what a snapshot of the machine will say of it
//	resumed       a restored machine has run
//	console.sock  the guest's first serial port
//	agent.sock    the agent's virtio-serial port, where there is no vsock
//	vmm.log       QEMU's own words
//
// # How a machine ends
//
// QEMU runs with -no-shutdown and -no-reboot: when the guest powers off, resets
// or panics, the process stays with its virtual CPUs stopped. The driver reads
// the reason and then sends quit. A daemon that was away finds the process
// still there and the reason in the journal, which query-status alone does not
// tell (a reset and a power-off look the same).
//
// When the host's disk is full, QEMU pauses the machine instead of telling the
// guest of a write error; Resume tries the write again.
//
// # Snapshots
//
// A snapshot is a stream that QEMU migrates; a restored machine is a new process
// that waits for one. Of a template only the devices travel, some 60 kB: its
// memory is a file, which each fork maps privately. The stream fits only the
// very build of QEMU that wrote it, for microvm is no versioned machine.
//
// Three things are QEMU's way. It takes one snapshot in a pause, and none of a
// restored machine that has not run: the next needs the machine to be resumed. It
// holds no lock on the disks between a snapshot or a restore and the Resume that
// follows, which fails with hv.ErrDiskInUse when another machine was faster. And a
// machine with shares has no snapshots, for what virtiofsd knows is not in the
// stream.
//
// Before version 8.2 a fork opens the template's memory for writing, which its
// user must be allowed to do, although it never writes.
//
// # What is lost
//
// Console output while no daemon is attached is discarded by QEMU. vmm.log and
// events.log are cut off at a limit while a daemon is attached; QEMU writes
// few lines to either, and those that a guest can cause are rate-limited.
package qemu
