package httpapi

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/volantvm/volant/client/api"
)

func (s *Server) listVMs(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	f := api.VMFilter{
		Plugin:   q.str("plugin"),
		Query:    q.str("q"),
		Selector: q.selector(),
		Limit:    q.int("limit"),
		Offset:   q.int("offset"),
		Sort:     q.oneOf("sort", "name", "created_at", "updated_at", "status"),
		Desc:     q.oneOf("order", "asc", "desc") == "desc",
	}
	var states []string
	for _, st := range api.VMStates() {
		states = append(states, string(st))
	}
	for _, st := range q.list("status", states) {
		f.Status = append(f.Status, api.VMState(st))
	}
	if q.err != nil {
		return q.err
	}
	vms, total, err := s.svc.VMs(r.Context(), f)
	if err != nil {
		return err
	}
	w.Header().Set(api.HeaderTotalCount, strconv.Itoa(total))
	writeJSON(w, http.StatusOK, notNil(vms))
	return nil
}

func (s *Server) createVM(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	wt := q.wait(api.WaitRunning, api.WaitHealthy, api.WaitStopped)
	if q.err != nil {
		return q.err
	}
	var req api.VMCreate
	if err := decode(w, r, &req); err != nil {
		return err
	}
	if err := req.Validate(); err != nil {
		return err
	}
	if wt.what != api.WaitNone && req.Stopped {
		return api.Errorf(api.CodeInvalid, "wait: a VM that is created stopped does not get %s", wt.what)
	}
	req.Wait = wt.what
	vm, err := s.svc.CreateVM(r.Context(), req)
	if err != nil {
		return err
	}
	return s.replyVM(w, r, http.StatusCreated, vm, "was created", wt)
}

func (s *Server) getVM(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	wt := q.wait(api.WaitRunning, api.WaitHealthy, api.WaitPaused, api.WaitStopped, api.WaitDeleted)
	name, err := pathName("VM", r)
	if err := errors.Join(err, q.err); err != nil {
		return err
	}
	vm, err := s.svc.VM(r.Context(), name)
	if api.CodeOf(err) == api.CodeNotFound && wt.what == api.WaitStopped {
		// One that removed itself has stopped; the service may know how.
		if end, endErr := s.svc.WaitVM(r.Context(), name, wt.what); endErr == nil {
			writeJSON(w, http.StatusOK, end)
			return nil
		}
	}
	if err != nil {
		return err
	}
	return s.replyVM(w, r, http.StatusOK, vm, "exists", wt)
}

func (s *Server) startVM(w http.ResponseWriter, r *http.Request) error {
	return s.changeVM(w, r, "was told to start", func(ctx context.Context, name string, _ api.VMStop) (api.VM, error) {
		return s.svc.StartVM(ctx, name)
	}, api.WaitRunning, api.WaitHealthy, api.WaitStopped)
}

func (s *Server) stopVM(w http.ResponseWriter, r *http.Request) error {
	return s.changeVM(w, r, "was told to stop", s.svc.StopVM, api.WaitStopped)
}

func (s *Server) restartVM(w http.ResponseWriter, r *http.Request) error {
	return s.changeVM(w, r, "was told to restart", s.svc.RestartVM, api.WaitRunning, api.WaitHealthy, api.WaitStopped)
}

func (s *Server) pauseVM(w http.ResponseWriter, r *http.Request) error {
	return s.changeVM(w, r, "was told to stand still", func(ctx context.Context, name string, _ api.VMStop) (api.VM, error) {
		return s.svc.PauseVM(ctx, name)
	}, api.WaitPaused)
}

func (s *Server) resumeVM(w http.ResponseWriter, r *http.Request) error {
	return s.changeVM(w, r, "was told to go on", func(ctx context.Context, name string, _ api.VMStop) (api.VM, error) {
		return s.svc.ResumeVM(ctx, name)
	}, api.WaitRunning)
}

func (s *Server) scaleVM(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	wt := q.wait(api.WaitRunning, api.WaitHealthy)
	name, err := pathName("VM", r)
	if err := errors.Join(err, q.err); err != nil {
		return err
	}
	var in api.VMScale
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if err := s.svc.CheckWait(r.Context(), name, wt.what); err != nil {
		return err
	}
	in.By = peerOf(r)
	vm, err := s.svc.ScaleVM(r.Context(), name, in)
	if err != nil {
		return err
	}
	if vm.Desired != api.DesiredRunning {
		wt.what = api.WaitNone // it has its size, and nobody wants it to run
	}
	return s.replyVM(w, r, http.StatusOK, vm, "was scaled", wt)
}

// changeVM is what the routes have in common that change a VM and return it.
func (s *Server) changeVM(w http.ResponseWriter, r *http.Request, did string, do func(context.Context, string, api.VMStop) (api.VM, error), allowed ...api.VMWait) error {
	q := newQuery(r)
	wt := q.wait(allowed...)
	name, err := pathName("VM", r)
	if err := errors.Join(err, q.err); err != nil {
		return err
	}
	var how api.VMStop
	if err := decodeOptional(w, r, &how); err != nil {
		return err
	}
	if err := how.Validate(); err != nil {
		return err
	}
	if err := s.svc.CheckWait(r.Context(), name, wt.what); err != nil {
		return err
	}
	vm, err := do(r.Context(), name, how)
	if err != nil {
		return err
	}
	return s.replyVM(w, r, http.StatusOK, vm, did, wt)
}

func (s *Server) deleteVM(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	wt := q.wait(api.WaitDeleted)
	how := api.VMStop{GraceSeconds: q.int("grace_seconds"), Force: q.bool("force", false)}
	name, err := pathName("VM", r)
	if err := errors.Join(err, q.err, how.Validate()); err != nil {
		return err
	}
	// By id from here on: the name may go to another VM while we wait.
	vm, err := s.svc.VM(r.Context(), name)
	if err != nil {
		return err
	}
	if err := s.svc.DeleteVM(r.Context(), vm.ID, how); err != nil {
		return err
	}
	if wt.what != api.WaitNone {
		if _, err := s.waitVM(r.Context(), vm, "is being deleted", wt); err != nil && api.CodeOf(err) != api.CodeNotFound {
			return err
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// replyVM waits as asked and sends the VM.
func (s *Server) replyVM(w http.ResponseWriter, r *http.Request, code int, vm api.VM, did string, wt wait) error {
	if wt.what != api.WaitNone {
		w.(*response).accepted = true
		reached, err := s.waitVM(r.Context(), vm, did, wt)
		if err != nil {
			return err
		}
		vm = reached
	}
	writeJSON(w, code, vm)
	return nil
}

// waitVM waits for a VM whose change was accepted. The error says that it was,
// what the VM did not reach, and where it stands now.
func (s *Server) waitVM(ctx context.Context, vm api.VM, did string, wt wait) (api.VM, error) {
	ctx, stop := s.untilClosing(ctx)
	defer stop()
	bounded, cancel := context.WithTimeout(ctx, wt.timeout)
	defer cancel()
	reached, err := s.svc.WaitVM(bounded, vm.ID, wt.what)
	if err == nil {
		return reached, nil
	}
	if errors.Is(context.Cause(ctx), errClosing) {
		return vm, errClosing
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = api.Errorf(api.CodeTimeout, "time is over")
	}
	var e *api.Error
	if !errors.As(err, &e) || e.Code == api.CodeNotFound || e.Code == api.CodeInternal {
		return vm, err
	}
	out := *e
	if now, stateErr := s.svc.VM(ctx, vm.ID); stateErr == nil {
		vm = now
	}
	if e.Code == api.CodeTimeout {
		out.Message = "VM " + vm.Name + " " + did + ", but is not " + string(wt.what) + " after " + wt.timeout.String() + ": it is " + describe(vm)
		if out.Hint == "" {
			out.Hint = "it may still get there; volar vms timeline " + vm.Name + " and volar vms logs --console " + vm.Name + " show how far it is"
		}
		return vm, &out
	}
	out.Message = "VM " + vm.Name + " " + did + ", but will not be " + string(wt.what) + ": " + e.Message
	if !strings.Contains(e.Message, string(vm.Status)) {
		out.Message += " (it is " + describe(vm) + ")"
	}
	return vm, &out
}

// describe says in words where a VM stands.
func describe(vm api.VM) string {
	s := string(vm.Status)
	if vm.Status == api.VMRunning {
		switch {
		case !vm.AgentUp:
			s += ", its agent does not answer"
		case vm.Health.Status == api.HealthStarting:
			s += ", not healthy yet"
		case vm.Health.Status == api.HealthUnhealthy:
			s += ", unhealthy"
		}
	}
	if vm.Reason != "" {
		s += ": " + vm.Reason
	}
	if vm.WaitingFor != "" {
		s += ", waits for " + vm.WaitingFor
	}
	return s
}

func (s *Server) vmTimeline(w http.ResponseWriter, r *http.Request) error {
	name, err := pathName("VM", r)
	if err != nil {
		return err
	}
	tl, err := s.svc.VMTimeline(r.Context(), name)
	if err != nil {
		return err
	}
	tl.Steps = notNil(tl.Steps)
	writeJSON(w, http.StatusOK, tl)
	return nil
}

// vmAgent hands the request to the workload's proxy with what follows "/agent"
// as its path, escapes kept.
func (s *Server) vmAgent(w http.ResponseWriter, r *http.Request) error {
	name, err := pathName("VM", r)
	if err != nil {
		return err
	}
	h, err := s.svc.VMWorkload(r.Context(), name)
	if err != nil {
		return err
	}
	prefix := api.Prefix + "/vms/" + name + "/agent"
	out := r.Clone(r.Context())
	raw := strings.TrimPrefix(r.URL.EscapedPath(), prefix)
	plain, err := url.PathUnescape(raw)
	if err != nil {
		return api.Errorf(api.CodeInvalid, "the path does not parse: %v", err)
	}
	out.URL.Path, out.URL.RawPath, out.RequestURI = plain, raw, ""
	h.ServeHTTP(w, out)
	return nil
}
