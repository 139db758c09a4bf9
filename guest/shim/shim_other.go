//go:build !amd64

package shim

const binary = ""
