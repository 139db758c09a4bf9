// Report turns the lines that budget.Print wrote into a JSON document and a
// Markdown table, with the facts of the host that they depend on.
//
//	report LINES JSON MARKDOWN [DOCUMENT]
//
// A table row of the document that names a budget, in backquotes in its last
// cell, promises that it was measured: a name without a line is an error, and so
// is a line that no row names.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/volantvm/volant/testdata/budget"
)

// document is what the JSON file holds.
type document struct {
	Time    time.Time     `json:"time"`
	Host    host          `json:"host"`
	Budgets []budget.Line `json:"budgets"`
}

// host is what a figure depends on.
type host struct {
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	MemoryMiB int    `json:"memory_mib"`
	Kernel    string `json:"kernel"`
	QEMU      string `json:"qemu"`
	KVM       bool   `json:"kvm"` // /dev/kvm opens, which is no proof that guests run on it
	Go        string `json:"go"`
	Load      string `json:"load"` // average of 1, 5 and 15 minutes, as the run ended
	Version   string `json:"version"`
}

func main() {
	if len(os.Args) != 4 && len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: report LINES JSON MARKDOWN [DOCUMENT]")
		os.Exit(2)
	}
	doc, err := run(os.Args[1], os.Args[2], os.Args[3])
	if err == nil && len(os.Args) == 5 {
		err = compare(os.Args[4], doc.Budgets)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "report: %v\n", err)
		os.Exit(1)
	}
}

func run(lines, jsonFile, markdownFile string) (*document, error) {
	data, err := os.ReadFile(lines)
	if err != nil {
		return nil, err
	}
	doc := &document{Time: time.Now().UTC().Truncate(time.Second), Host: thisHost()}
	for dec := json.NewDecoder(bytes.NewReader(data)); ; {
		var l budget.Line
		err := dec.Decode(&l)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", lines, err)
		}
		doc.Budgets = append(doc.Budgets, l)
	}
	out, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(jsonFile, append(out, '\n'), 0o644); err != nil {
		return nil, err
	}
	return doc, os.WriteFile(markdownFile, markdown(doc), 0o644)
}

// compare wants the table rows of the document at path to name the lines, all
// of them and no other.
func compare(path string, lines []budget.Line) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	promised := promises(string(data))
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(promised)) {
		if !slices.ContainsFunc(lines, func(l budget.Line) bool { return l.Name == name }) {
			errs = append(errs, fmt.Errorf("%s names %s, which nothing measured", path, name))
		}
	}
	for _, l := range lines {
		if !promised[l.Name] {
			errs = append(errs, fmt.Errorf("%s was measured, but %s does not name it", l.Name, path))
		}
	}
	return errors.Join(errs...)
}

// promises lists the budgets that a Markdown document names: words with a hyphen,
// in backquotes in the last cell of a table's row.
func promises(document string) map[string]bool {
	names := make(map[string]bool)
	for line := range strings.Lines(document) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 3 || cells[0] != "" {
			continue
		}
		for i, word := range strings.Split(cells[len(cells)-2], "`") {
			if i%2 == 1 && strings.Contains(word, "-") && strings.Trim(word, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" {
				names[word] = true
			}
		}
	}
	return names
}

func markdown(doc *document) []byte {
	var b bytes.Buffer
	h := doc.Host
	kvm := "no KVM"
	if h.KVM {
		kvm = "KVM opens"
	}
	fmt.Fprintf(&b, "Volant %s, %s: %d × %s, %d MiB, Linux %s, %s, %s, %s; load %s.\n\n", h.Version, doc.Time.Format(time.DateOnly),
		h.CPUs, h.CPU, h.MemoryMiB, h.Kernel, h.QEMU, kvm, h.Go, h.Load)
	b.WriteString("| what | measured | limit | | ours, ms | baseline, ms | how |\n|---|---|---|---|---|---|---|\n")
	for _, l := range doc.Budgets {
		ours, base := "", ""
		if l.Ours != nil {
			ours, base = l.Ours.String(), l.Base.String()
		}
		fmt.Fprintf(&b, "| `%s` | %.2f %s | %.2f | %s | %s | %s | %s |\n", l.Name, l.Value, l.Unit, l.Limit, l.Verdict(), ours, base, strings.ReplaceAll(l.How, "|", "\\|"))
	}
	return b.Bytes()
}

// thisHost gathers what it can; what cannot be told is empty.
func thisHost() host {
	h := host{CPUs: runtime.NumCPU(), Go: runtime.Version(), CPU: field("/proc/cpuinfo", "model name"),
		Kernel: text("/proc/sys/kernel/osrelease"), Version: first("git", "describe", "--tags", "--always", "--dirty")}
	h.QEMU = strings.TrimPrefix(first("qemu-system-x86_64", "--version"), "QEMU emulator version ")
	h.QEMU = "QEMU " + strings.Fields(h.QEMU + " -")[0]
	fmt.Sscanf(field("/proc/meminfo", "MemTotal"), "%d", &h.MemoryMiB) //nolint:errcheck // 0 says that it is not known
	h.MemoryMiB /= 1024
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
		f.Close()
		h.KVM = true
	}
	if load := strings.Fields(text("/proc/loadavg")); len(load) >= 3 {
		h.Load = strings.Join(load[:3], " ")
	}
	return h
}

func text(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// field returns the value of the first line "name : value" of a file of /proc.
func field(path, name string) string {
	for line := range strings.Lines(text(path)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// first returns the first line that a program prints, "" when it fails.
func first(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}
