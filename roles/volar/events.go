package volar

import (
	"fmt"
	"time"

	"github.com/volantvm/volant/client/api"
)

type eventsCmd struct {
	Follow bool     `short:"f" help:"Go on with what happens."`
	After  uint64   `help:"Only events after this number." placeholder:"N"`
	Since  string   `help:"Only events of this time and later: 2026-01-31T15:04:05Z, or 10m for the last ten minutes." placeholder:"TIME"`
	Until  string   `help:"Only events before this time; with --follow it ends then." placeholder:"TIME"`
	VM     string   `name:"vm" help:"Only events about this VM." placeholder:"NAME" complete:"vms"`
	Name   string   `help:"Only events about what has this name: a VM, plugin, kernel, volume or image." placeholder:"NAME"`
	Type   []string `help:"Only events of these types." placeholder:"TYPE"`

	Selector string `short:"l" help:"Only events about what had such labels at the time: app=web,tier!=test,owner,!old,'zone in (a,b)'." placeholder:"SELECTOR"`
}

// Run prints events, one a line.
func (cmd *eventsCmd) Run(c *cli) (err error) {
	f := api.EventFilter{After: cmd.After, VM: cmd.VM, Name: cmd.Name}
	for _, t := range cmd.Type {
		f.Types = append(f.Types, api.EventType(t))
	}
	if f.Selector, err = api.ParseSelector(cmd.Selector); err != nil {
		return err
	}
	if f.Since, err = c.parseTime("--since", cmd.Since); err != nil {
		return err
	}
	if f.Until, err = c.parseTime("--until", cmd.Until); err != nil {
		return err
	}
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		return usagef("--since %s is not before --until %s", cmd.Since, cmd.Until)
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	return cl.Events(c.ctx, f, cmd.Follow, c.printEvent)
}

func (c *cli) printEvent(e api.Event) error {
	switch {
	case c.output == outputJSON, c.output == outputYAML:
		return c.writeItem(e)
	case e.Type == api.EventsLost: // it belongs to none of those that the rest is about
		c.notef("%s", printable(e.Message))
		return nil
	case c.output == outputName:
		_, err := fmt.Fprintln(c.stdout, e.Name)
		return err
	}
	line := fmt.Sprintf("%-6d %s  %-17s %s", e.Seq, e.Time.Format(time.RFC3339), e.Type, e.Name)
	if e.OldName != "" {
		line += " (was " + e.OldName + ")"
	}
	if e.IPAddress != "" {
		line += " " + e.IPAddress
	}
	if e.Message != "" {
		line += ": " + e.Message
	}
	_, err := fmt.Fprintln(c.stdout, printable(line))
	return err
}
