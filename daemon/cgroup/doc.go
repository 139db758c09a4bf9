// Package cgroup keeps each VM's VMM in a control group of its own, and says
// what it used: of version 2, of version 1, or of both where a host has both.
//
// The groups lie below PARENT/INSTANCE in every hierarchy that Volant needs.
// INSTANCE is random and belongs to one data directory, so that what has no VM
// there is an orphan of ours, whoever else runs VMs on this host; nothing above it
// is ever limited, emptied or removed unless it is empty.
//
// A host that delegates nothing is no error: VMs then run without limits, and
// Host.Problem says why.
//
// Sources: cgroups(7); Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of
// Linux 6.12.
package cgroup
