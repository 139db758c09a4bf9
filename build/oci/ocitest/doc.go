// Package ocitest makes small OCI images for tests from layers in memory: as
// an OCI layout folder, as a layout in a tar archive, and as `docker save`
// writes them. Equal images give equal bytes. It is for tests only and trusts
// what it is given: layers may be as wrong as a test wants them.
package ocitest
