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
// # Disks
//
// The root of a VM made from an image is the image's disk, a blob that all VMs
// of the image share and none writes to, under the VM's own upper.img. Disks that
// the daemon makes (package ext4) are made under a temporary name and then
// renamed: a disk that has its name is whole, and what it holds is the guest's
// alone from then on. A VM's own disks go with its data directory; a named
// volume stays. Its row says whether its disk is to be made, is there, or is to
// go (store/row.VolumeNew and so on), so that one that is missing is not taken for
// a new one. A VM has its volumes from the claim before its launch until it has
// ended, in the transaction that says so.
//
// # What is verified
//
// Kernel, initramfs, the agent's disk, the disk of a root or of a volume that is a
// blob: whatever VMs share is hashed when this daemon has not done so yet and when
// the file is not the one that it hashed, by device, inode, size, modification and
// change time, of which the last cannot be set by anybody. To hash a gigabyte
// before every boot would take longer than the boot, a kernel's a tenth of it.
// What such a file holds is read-only for the guest.
//
// # The agent
//
// The agent of a guest is this program. Its disk (agentimage.go) and the initramfs
// that enters it (initramfs.go) are made once and cached, by what they are made
// of. The row says which an incarnation has: they stay while it runs, whatever
// volantd is installed meanwhile, and go when no VM uses them any more.
//
// # Images
//
// One pull is under way for one image and form, however many ask; it ends when
// nobody waits any more. Its staging directory stays until it has succeeded, or
// nobody has tried again for timing.grace. The finished file is synced and renamed to be a blob, then
// image and reference are written in one transaction. An image that VMs were
// made from cannot be removed; of the others those used longest ago go when there
// is more than Config.ImageCap.
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
// timing.restartMin to restartMax. When its next start is stands in the row, with
// the count of restarts, in the transaction of its end. A VM that its operator
// could not start has failed and waits for him. After a reboot of the host, what
// was running is started, and what was stopped if its policy is always.
//
// A start waits until what the VM depends on is up: in the row, and held by a
// worker of this daemon, since after a reboot rows tell of the time before.
// A VM with AutoRemove is wished gone in the very transaction that settles it.
//
// # What a VM takes of its host
//
// A VM that is to run has been promised its memory, in the call that wished so
// (admit), and keeps the promise until it is settled. Its VMM is in cgroups of
// its own, made after the intent of the start and removed before the
// incarnation's directory; what is in them then is ended.
//
// A VM is paused, resumed and scaled by wishes like the others: row.VM.WantPaused
// and CPUCores, MemoryMB beside Has, which is what its machine was given. While a
// machine stands still its guest is asked nothing (machine.sleep); the first thing
// that it hears afterwards is what time it is.
//
// # Locks
//
// Daemon.mu guards the table of workers and is never held across I/O. Only
// imageJobs.mu is taken before it. ports.mu, bus.mu, timeline.mu, ends.mu and
// verifiedFiles.mu are leaves. Who holds Daemon.volumes may take Daemon.blobs,
// not the other way round; so may who holds Daemon.admission. Of one VM, only its worker touches machine,
// tap and directories.
package daemon
