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
// # What is lost
//
// Console output while no daemon is attached is discarded by QEMU. vmm.log and
// events.log are cut off at a limit while a daemon is attached; QEMU writes
// few lines to either, and those that a guest can cause are rate-limited.
package qemu
