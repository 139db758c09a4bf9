// Package hv says what a hypervisor must do for Volant: the vocabulary (machine,
// VMM process, record, state, exit) and the Driver contract that every
// hypervisor implements. Drivers live beside it, one folder each; the suite
// that every driver must pass is hv/hvtest. What drivers share is in hv/vmm
// (processes, records, console logs) and hv/transport (ways to the agent).
//
// # Words
//
// A VMM is the host process that runs one virtual machine (qemu-system-x86_64,
// cloud-hypervisor). An incarnation is one life of a VM, from Launch to exit;
// each has a directory of its own, never used twice, so that a stale socket of
// an earlier life can never be met. A Record is what must be known to find the
// VMM again after the daemon was killed.
//
// # The contract
//
// A driver reports facts and carries out orders; it decides nothing. Restart
// policy, health and reboot decisions belong to the daemon: a guest reset is an
// exit. The VMM runs in a session of its own and outlives the daemon. A driver
// never signals a process that it cannot prove to be its own (pid, start time
// and boot id together). A call that fails leaves nothing behind: no process,
// no socket, no file outside the incarnation's directory.
//
// hv knows no daemon, no manifest and no store.
package hv
