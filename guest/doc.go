// Package guest is kestrel: process 1 of every Volant machine, and the agent
// that the host talks to. It brings the guest up, runs one workload, tells the
// host how that goes, and powers the machine off. It knows nothing of the
// daemon; what the two say to each other is package wire.
//
// # Boot
//
// Run goes through these steps in order. Each is timed on CLOCK_BOOTTIME and
// reported in wire.Hello.Timeline under the name given here. A step is fatal
// unless it says otherwise: the guest says why on the console, tells the host
// and powers off. Every wait in a step is bounded, so that it never hangs.
//
//  0. guard: refuse to act anywhere but in a Volant guest (see below).
//  1. kernel: not a step of kestrel's, but the time before it. Where the agent
//     is on a disk of its own, "shim" is what package guest/shim took to find
//     and execute it, and "kestrel" what the program took to start. Where the
//     boot has a plan (package guest/plan), "plan" is what the shim did by it,
//     "kestrel" begins after it, and steps 2, 5, 6 and 7 and the start in 11
//     are not taken again: kestrel adopts the workload. Of 8 it takes what is
//     about itself: the workload has changed to the root before it.
//  2. mounts: proc, sys, dev, dev/pts, dev/shm, run, tmp, cgroup2. All but proc,
//     sys and dev are survived when they fail.
//  3. modules: load what wire.ModulesDir lists. Survived: a module that was
//     needed makes a later step fail with a clearer message.
//  4. config: find the disk with the serial wire.ConfigSerial, read and verify
//     the boot configuration.
//  5. identity: clock, host name, /etc/hostname, /etc/hosts, /etc/machine-id and,
//     where name servers are configured, /etc/resolv.conf. Survived.
//  6. entropy: credit the host's seed to the kernel's pool. Survived.
//  7. network: loopback, and where configured the NIC with that MAC: MTU,
//     up, address, default route.
//  8. root (where the configuration has one): the disk wire.RootSerial read-only
//     under an overlay, what the initramfs has in /proc, /sys and /dev in it,
//     change of root. See below.
//  9. volumes (where the configuration has mounts): disks and tmpfs at their
//     targets; a new volume is filled from the image.
//  10. files (with a root): the files of step 5 over the image's, the working
//     directory, what container engines set (open files, ports below 1024 and
//     ping for everybody). Then a read-only root becomes so, which is fatal when
//     it fails; the rest is survived.
//  11. workload: user, environment, working directory, start.
//  12. ready: from the start of the workload until its health check first
//     succeeds; without one, until BaseURL's port accepts; without either, at
//     once.
//  13. agent: begin to serve the agent API on the virtio-serial port and on
//     AF_VSOCK, and to listen to the power button. It begins when the workload
//     is ready or over, at the latest half a second after its start or after
//     the first file was copied to a new volume, or as soon as a step failed,
//     for the host to hear of that. A workload with a terminal or open input is
//     waited for by somebody, and so is the agent: it begins at once. Recorded
//     when the first of the two listens. A guest that has neither carries on
//     without.
//
// # The root of an image
//
// The image sees what a container would: its own tree, /tmp and /run included;
// /proc, /sys with the whole cgroup2 hierarchy, which it may manage, and /dev
// with pts, shm and mqueue; the machine's own hosts, hostname, resolv.conf and
// machine-id, mounted over the files that its names lead to, which are made
// where they are missing and otherwise keep their content. The machine being
// the boundary, root has all capabilities, nothing in /proc is masked, and
// neither nosuid nor nodev is on the root.
//
// It is process 1 of a process and a mount namespace of its own, as programs
// expect it that are made to be (systemd, s6), and ends with everything in them.
// What the kernel does with signals for a process 1 it does with this one: those
// that it does not handle are ignored, whoever sends them, but for SIGKILL.
// Orphans are its own to reap, or those of the init that WorkloadConfig.Init puts
// before it (init.go). Commands and probes join the namespaces (namespace_linux.go)
// and end with them, while kestrel stays outside; files are copied as the workload
// sees them, with what it has mounted. The process is made by a fork that goes on
// in the child (fork_linux.go) since /proc is its own. On an initramfs, the fast path,
// there are no such namespaces: kestrel is process 1, and reaps.
//
// Changes go to an overlay's upper layer: an ext4 disk that lives as long as
// the VM, or a tmpfs. A read-only root has a tmpfs as well, for what has to be
// mounted on and the image lacks, and both become read-only before the workload
// starts.
//
// The new root is moved over the initramfs and entered, so that nothing tells
// it from the root of any machine and user namespaces work in it. The files of
// the initramfs are removed, this binary included, which lives on for as long
// as it runs. What kestrel keeps for itself stays on a tmpfs that no path of
// the new root leads to. A path of the image or of a mount's target is resolved
// with the new root as its end (resolve.go), and nothing is mounted over /proc,
// /sys or /dev, whatever the image links to them.
//
// A volume is filled when it is empty, lost+found aside: marked, copied, synced,
// and only then unmarked, so that a power cut in between makes the next boot
// begin anew. Squashfs and erofs are mounted read-only whatever is asked.
//
// # The guard
//
// Kestrel mounts over /proc and /dev, sets the clock, kills every process and
// powers off. The same binary is installed on hosts, so Run first asks Guard,
// and Guard refuses unless all of this holds:
//
//   - this is process 1 (of its pid namespace, hence the next points too);
//   - / is a ramfs or tmpfs, as only an initramfs is;
//   - the kernel command line carries volant.vm=.
//
// The first two are asked without touching anything. The kernel hands dotted
// parameters to nobody, neither as arguments nor in the environment, so the
// third needs /proc, which nobody has mounted before process 1. Only after the
// first two were granted does Guard make and mount /proc, and if the parameter
// is not there it unmounts and removes it again before it refuses.
//
// # Streams
//
// wire.PathExec runs commands beside the workload, wire.PathAttach joins the
// workload's own streams; both speak package client/api/stdio. What belongs to
// the workload and what to commands is told in attach.go and exec.go. A process
// has a session of its own, and a pseudo-terminal where it was asked for;
// nothing that a client does or leaves undone holds the workload up for longer
// than a bounded while.
//
// # Waking
//
// A guest that did not run for a while is told so by wire.PathWake (wake.go).
// After a pause its clock is set. After a restore, told by a new epoch, it also
// gets what must not be as in others of the same snapshot: entropy, of which the
// kernel's generators are reseeded at once; host name, machine-id and the files
// of step 5, which are rewritten in place; the NIC's MAC address, addresses and
// routes, with what it knew of its neighbours forgotten. Connections of the agent
// that are from before end first, without an answer; commands get SIGHUP for it.
// Log lines keep their numbers. The workload goes on as if nothing had been: its
// health is asked for anew, and another start of it, or a command, sees the new
// host name in its environment. What it keeps to itself, keys that it made and
// generators that it seeded, is the same in all forks: only it could change that.
//
// # The end
//
// A workload that exits for good, or cannot be started, ends the machine.
// Before powering off, the guest waits for the host to learn the final
// wire.Status: until the host posts wire.PathShutdown, or 1 s after a response
// carried that status (time to fetch the last logs), or 5 s when nobody asks.
// On request (wire.PathShutdown, SIGTERM, the ACPI power button) the workload's
// process group gets its stop signal and its grace, then SIGKILL; open log
// streams are drained and ended, commands are killed, and who is attached or
// has a command gets its exit status, for which a few seconds are given; then
// everything is killed and file systems are synced. Kestrel leaves the root and
// unmounts volumes, overlay and disks, or makes read-only what stays busy, and
// the machine powers off. A watchdog powers off when that takes too long. A
// panic in kestrel takes the same way out.
//
// # One owner of wait4
//
// Process 1 inherits every orphan. Only reaper.go calls wait4; whoever starts
// a process does it through the reaper and gets the status from it. Neither
// exec.Cmd nor os.Process.Wait may be used in this package.
package guest
