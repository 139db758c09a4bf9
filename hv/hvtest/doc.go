// Package hvtest holds what the tests of drivers, and of everything above
// them, are built on: the conformance suite that every hv.Driver must pass
// (Run), and a scripted hypervisor in this process that passes it too (Fake).
package hvtest
