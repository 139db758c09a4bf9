// Package daemon decides. It turns requests and what guests report into state,
// in ordered steps that can be undone, and keeps the host in line with the
// store. It is not the HTTP server (daemon/httpapi), touches no network device
// itself (daemon/netdev) and knows no SQL.
//
// # Wish and truth
//
// A request changes what is wished for a VM (row.VM.Desired, Replace, Stop) in
// one transaction, and is answered. A worker, one goroutine a VM that needs
// one, compares the wish with the row's state and with what the driver says,
// and takes one step at a time towards the wish. It reads the row anew before
// each step, so it does not matter who woke it, how often, or whether it is the
// first one after the daemon was killed. VMs that have ended and are to stay so
// have no worker and cost no memory.
//
// # Intent before action
//
// The row says what is about to be done before it is done:
//
//	starting, incarnation n   written before the first file, tap or process of
//	                          incarnation n is made
//	its record                written when the VMM is there; until then the
//	                          driver finds it by the incarnation's directory
//	running                   written when the agent answers and the workload
//	                          was started
//	stopping                  written before the guest is asked to stop
//	stopped, crashed, failed  written when VMM, rules and tap are gone
//	no row                    when everything else is gone: name and address are
//	                          free only then
//
// So whenever the process is killed, the next one finds in each row a state
// from which the same worker goes on. What a row does not explain (a tap, a
// directory, a VMM whose VM is gone) is removed by a worker for that id.
//
// # VMs outlive the daemon
//
// When the context of Run ends, workers let go of their machines and the VMs
// run on. The next Run takes them up again: a record names one process for all
// time, and what cannot be proven to be ours is never signalled.
//
// # Ends
//
// A VM that ends by itself is stopped (its workload exited with 0, or the guest
// powered off) or crashed. Then the wish ends too, unless the manifest's
// restart policy says otherwise; the guest restarts a workload that exits,
// Volant restarts a VM that crashes, after a pause that doubles from
// timing.restartMin to restartMax. A VM that could not be started has failed and waits
// for its operator. After a reboot of the host, what was running is started.
//
// # Locks
//
// Daemon.mu guards the table of workers and is never held across I/O. ports.mu,
// bus.mu and timeline.mu are leaves. Of one VM, only its worker touches machine,
// tap and directories.
package daemon
