// Report turns the lines that budget.Print wrote into a JSON document and a
// Markdown table, with the facts of the host that they depend on.
//
//	report LINES JSON MARKDOWN
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
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
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: report LINES JSON MARKDOWN")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintf(os.Stderr, "report: %v\n", err)
		os.Exit(1)
	}
}

func run(lines, jsonFile, markdownFile string) error {
	data, err := os.ReadFile(lines)
	if err != nil {
		return err
	}
	doc := document{Time: time.Now().UTC().Truncate(time.Second), Host: thisHost()}
	for dec := json.NewDecoder(bytes.NewReader(data)); ; {
		var l budget.Line
		err := dec.Decode(&l)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", lines, err)
		}
		doc.Budgets = append(doc.Budgets, l)
	}
	out, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(jsonFile, append(out, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(markdownFile, markdown(&doc), 0o644)
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
