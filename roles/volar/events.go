package volar

import (
	"fmt"
	"time"

	"github.com/volantvm/volant/client/api"
)

type eventsCmd struct {
	Follow bool     `short:"f" help:"Go on with what happens."`
	After  uint64   `help:"Only events after this number." placeholder:"N"`
	VM     string   `name:"vm" help:"Only events about this VM." placeholder:"NAME" complete:"vms"`
	Type   []string `help:"Only events of these types." placeholder:"TYPE"`
}

// Run prints events, one a line.
func (cmd *eventsCmd) Run(c *cli) error {
	f := api.EventFilter{After: cmd.After, VM: cmd.VM}
	for _, t := range cmd.Type {
		f.Types = append(f.Types, api.EventType(t))
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	return cl.Events(c.ctx, f, cmd.Follow, func(e api.Event) error {
		switch c.output {
		case outputJSON, outputYAML:
			return c.writeItem(e)
		case outputName:
			_, err := fmt.Fprintln(c.stdout, e.Name)
			return err
		}
		line := fmt.Sprintf("%-6d %s  %-17s %s", e.Seq, e.Time.Format(time.RFC3339), e.Type, e.Name)
		if e.IPAddress != "" {
			line += " " + e.IPAddress
		}
		if e.Message != "" {
			line += ": " + e.Message
		}
		_, err := fmt.Fprintln(c.stdout, printable(line))
		return err
	})
}
