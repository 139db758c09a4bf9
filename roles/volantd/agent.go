package volantd

import (
	"context"
	"io"

	"github.com/volantvm/volant/build/erofs"
	"github.com/volantvm/volant/build/layers"
	"github.com/volantvm/volant/guest/wire"
)

// agentImage implements daemon.Config.AgentImage. Nothing is compressed, and the
// program begins at a block, so that a guest maps it as it lies on the disk.
func agentImage(ctx context.Context, w io.Writer, program io.ReaderAt, size int64) error {
	tree := layers.NewTree()
	if err := tree.Add(wire.AgentProgram, layers.ReaderFile(0o755, program, size)); err != nil {
		return err
	}
	_, err := erofs.Write(ctx, w, tree, erofs.Options{OneTime: true, Label: wire.AgentSerial})
	return err
}
