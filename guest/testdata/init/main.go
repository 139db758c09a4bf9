// Command init is the /init of the test machines: kestrel and nothing else.
package main

import (
	"context"
	"os"

	"github.com/volantvm/volant/roles/kestrel"
)

func main() {
	os.Exit(kestrel.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, "0.0.0-test"))
}
