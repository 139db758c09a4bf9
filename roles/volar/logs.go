package volar

import (
	"bufio"
	"fmt"
	"strconv"
	"time"

	"github.com/volantvm/volant/client/api"
)

type logsCmd struct {
	Name       string `arg:"" help:"Name or id of the VM." complete:"vms"`
	Follow     bool   `short:"f" help:"Go on with new lines as they come, until the VM has ended for good."`
	Tail       string `short:"n" help:"Only the last lines, this many, or all (default: ${default})." default:"all" placeholder:"N"`
	Since      string `help:"Only lines since a time (2026-01-31T15:04:05Z) or so long ago (10m)." placeholder:"TIME"`
	Until      string `help:"Only lines before a time, or until so long ago." placeholder:"TIME"`
	Timestamps bool   `short:"t" help:"Begin each line with its time; only the workload's lines have one."`
	Log        string `help:"Which log: ${enum} (default: ${default})." enum:"workload,console,vmm" default:"workload" placeholder:"LOG"`
	Console    bool   `help:"The same as --log=console."`
}

// Run prints log lines.
func (cmd *logsCmd) Run(c *cli) error {
	q := api.LogQuery{Follow: cmd.Follow, Log: api.LogName(cmd.Log)}
	if cmd.Console {
		q.Log = api.LogConsole
	}
	var err error
	if q.Tail, err = parseTail(cmd.Tail); err != nil {
		return err
	}
	if q.Since, err = c.parseTime("--since", cmd.Since); err != nil {
		return err
	}
	if q.Until, err = c.parseTime("--until", cmd.Until); err != nil {
		return err
	}
	if !q.Since.IsZero() && !q.Until.IsZero() && !q.Since.Before(q.Until) {
		return usagef("--since %s is not before --until %s", cmd.Since, cmd.Until)
	}
	if q.Log != api.LogWorkload && (cmd.Since != "" || cmd.Until != "") {
		return &usageError{msg: "the lines of the " + string(q.Log) + " log have no times for --since and --until", hint: "select the last ones instead, with --tail"}
	}
	if c.output == outputName {
		return usagef("-o name: lines have no names")
	}
	if err := api.ValidateName("VM", cmd.Name); err != nil {
		return err
	}
	cl, err := c.daemon()
	if err != nil {
		return err
	}
	p := logPrinter{c: c, out: bufio.NewWriter(c.stdout), name: cmd.Name, times: cmd.Timestamps, end: "\n"}
	err = cl.VMLogs(c.ctx, cmd.Name, q, func(e api.LogEntry) error {
		if c.output != outputTable {
			return c.writeItem(e)
		}
		p.print(e)
		if cmd.Follow {
			return p.out.Flush()
		}
		return nil
	})
	if closeErr := p.close(); err == nil {
		err = closeErr
	}
	return err
}

// parseTail reads how many lines are wanted, as api.LogQuery has it.
func parseTail(s string) (int, error) {
	if s == "all" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, usagef("--tail %s: give a number of lines, or all", s)
	}
	if n == 0 {
		return api.TailNone, nil
	}
	return int(n), nil
}

// parseTime reads a time of a flag: one that is told, here where it says no
// zone, or one that long ago. "" is none.
func (c *cli) parseTime(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return c.now().Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usagef("%s %s: give a time such as 2026-01-31T15:04:05Z, or a duration such as 10m", flag, s)
}

// logPrinter prints entries as lines. Errors of out are met by close.
type logPrinter struct {
	c     *cli
	out   *bufio.Writer
	name  string
	times bool
	end   string // of lines

	open        string // stream of a line whose end was not printed yet
	incarnation int
}

func (p *logPrinter) print(e api.LogEntry) {
	if p.open != "" && p.open != e.Stream {
		p.endLine()
	}
	if e.Incarnation > 0 && p.incarnation > 0 && e.Incarnation != p.incarnation {
		p.out.Flush() //nolint:errcheck // met again
		p.c.notef("%s was started again (start %d)", p.name, e.Incarnation)
	}
	p.incarnation = max(p.incarnation, e.Incarnation)
	text := e.Line
	if e.Stream == api.StreamVolant {
		text = fmt.Sprintf("-- %s --", text) // the position says where
	}
	if p.times && p.open == "" && !e.Time.IsZero() {
		_, _ = p.out.WriteString(e.Time.Format(time.RFC3339Nano) + " ")
	}
	_, _ = p.out.WriteString(text)
	if p.open = e.Stream; !e.Partial {
		p.endLine()
	}
}

func (p *logPrinter) endLine() {
	p.open = ""
	_, _ = p.out.WriteString(p.end)
}

func (p *logPrinter) close() error {
	if p.open != "" {
		p.endLine()
	}
	return p.out.Flush()
}
