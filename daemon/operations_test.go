package daemon

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volantvm/volant/client/api"
	"github.com/volantvm/volant/daemon/httpapi"
)

// readOnly are the methods of httpapi.Service that change nothing, neither in
// the store nor in the world: a daemon that is killed in one leaves nothing.
func readOnly() []string {
	return []string{
		"VM", "VMs", "CheckWait", "WaitVM", "Stats", "VMTimeline", "VMConfig", "VMConfigHistory", "VMLogs", "VMWorkload", "VMStat", "Plugins", "Plugin", "Blob", "Images", "Image",
		"Volumes", "Volume", "Kernels", "Events", "SystemInfo", "Doctor", "SystemSummary",
	}
}

// Every operation of the API is killed at every place in some crash case, or
// provably has no such place; and so is every write of the store. A new
// operation fails here until it has its case in crashCases.
func TestEveryOperationHasACrashCase(t *testing.T) {
	cases := make(map[string]bool)
	for _, c := range crashCases() {
		cases[c.op] = true
	}
	delete(cases, "")
	reads := readOnly()
	for m := range reflect.TypeFor[httpapi.Service]().Methods() {
		if cases[m.Name] == slices.Contains(reads, m.Name) {
			t.Errorf("%s: wants either a case in crashCases or a place in readOnly", m.Name)
		}
		delete(cases, m.Name)
		reads = slices.DeleteFunc(reads, func(r string) bool { return r == m.Name })
	}
	if len(cases) > 0 || len(reads) > 0 {
		t.Errorf("no method of httpapi.Service: %v %v", slices.Sorted(maps.Keys(cases)), reads)
	}
}

// What is said to read only does so: nothing is written, and nothing is done to
// hypervisor or network.
func TestReadOnlyOperations(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	var acts []string // what methods of the daemon act, each with what they called
	d := w.start(options{beforeAction: func(*instance) {
		mu.Lock()
		defer mu.Unlock()
		acts = append(acts, strings.Join(callers(), " "))
	}})
	d.equip()
	d.create("web", "serve")
	d.settle()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, name := range readOnly() {
		method := reflect.ValueOf(d.Daemon).MethodByName(name)
		args := make([]reflect.Value, method.Type().NumIn())
		for i := range args {
			switch in := method.Type().In(i); {
			case in == reflect.TypeFor[context.Context]():
				args[i] = reflect.ValueOf(ctx)
			case in.Kind() == reflect.Func:
				args[i] = reflect.MakeFunc(in, func([]reflect.Value) []reflect.Value {
					return []reflect.Value{reflect.Zero(reflect.TypeFor[error]())}
				})
			case in == reflect.TypeFor[string]():
				args[i] = reflect.ValueOf("web")
			case in == reflect.TypeFor[api.VMWait]():
				args[i] = reflect.ValueOf(api.WaitRunning)
			default:
				args[i] = reflect.Zero(in)
			}
		}
		method.Call(args)
		mu.Lock()
		for _, act := range acts { // the VM's worker may act too
			if strings.Contains(act, "daemon.(*Daemon)."+name+" ") {
				t.Errorf("%s is said to read only, but acts: %s", name, act)
			}
		}
		mu.Unlock()
	}
	w.checkWorld(d.settle())
}

// Every method of the store that writes is met by a crash case.
func TestEveryWriteHasACrashCase(t *testing.T) {
	var mu sync.Mutex
	met := make(map[string]bool)
	t.Run("cases", func(t *testing.T) {
		for _, c := range crashCases() {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				d := w.start(options{beforeAction: func(*instance) {
					if name := callerInStore(); name != "" {
						mu.Lock()
						defer mu.Unlock()
						met[name] = true
					}
				}})
				d.equip()
				if c.prepare != nil {
					c.prepare(d)
				}
				d.settle()
				c.act(d)
				if c.inGuest {
					time.Sleep(20 * time.Millisecond) // until it is seen
				}
				d.checkAfter(t, c)
			})
		}
	})
	for _, name := range storeWriters(t) {
		if !met[name] {
			t.Errorf("store.%s writes, and no case in crashCases gets there", name)
		}
	}
}

// callerInStore names the method of the store that is about to write, "" when
// none is.
func callerInStore() string {
	for _, fn := range callers() {
		if name, ok := strings.CutPrefix(fn, "store.(*Store)."); ok && name != "write" {
			return name
		}
	}
	return ""
}

// callers names the functions of Volant that are being called, innermost first.
func callers() []string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	var out []string
	for {
		f, more := frames.Next()
		if fn, ok := strings.CutPrefix(f.Function, "github.com/volantvm/volant/"); ok {
			out = append(out, fn)
		}
		if !more {
			return append(out, "")
		}
	}
}

// storeWriters lists the exported methods of the store whose source has a write
// transaction.
func storeWriters(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../store/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, path := range files {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || fn.Recv == nil || !fn.Name.IsExported() || strings.HasSuffix(path, "_test.go") {
				continue
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				if call, ok := n.(*ast.SelectorExpr); ok && call.Sel.Name == "write" {
					out = append(out, fn.Name.Name)
				}
				return true
			})
		}
	}
	if len(out) < 10 {
		t.Fatalf("only %v write: the source is not understood", out)
	}
	return out
}
