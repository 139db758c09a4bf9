package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/client/api"
)

func getConfigParams() []param {
	return []param{{"version", "integer", "an earlier version; 0 for the newest"}}
}

func setConfigParams() []param {
	return []param{
		{"expect", "integer", "refuse unless this is the present version"},
		{"version", "integer", "begin with this earlier version"},
		{"restart", "boolean", "start the VM anew, so that all of it is in effect"},
	}
}

func historyParams() []param {
	return []param{{"limit", "integer", "how many to return; 0 for all"}}
}

func (s *Server) renameVM(w http.ResponseWriter, r *http.Request) error {
	name, err := pathName("VM", r)
	if err != nil {
		return err
	}
	var in api.VMRename
	if err := decode(w, r, &in); err != nil {
		return err
	}
	if err := api.ValidateName("VM", in.Name); err != nil {
		return err
	}
	vm, err := s.svc.RenameVM(r.Context(), name, in.Name)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, vm)
	return nil
}

func (s *Server) getVMConfig(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	version := q.int("version")
	name, err := pathName("VM", r)
	if err := errors.Join(err, q.err); err != nil {
		return err
	}
	v, err := s.svc.VMConfig(r.Context(), name, version)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, v)
	return nil
}

func (s *Server) setVMConfig(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	in := api.VMConfigChange{Version: q.int("version"), Expect: q.int("expect"), Restart: q.bool("restart", false), By: peerOf(r)}
	name, err := pathName("VM", r)
	if err := errors.Join(err, q.err); err != nil {
		return err
	}
	if in.Patch, err = readBody(w, r); err != nil {
		return err
	}
	if len(in.Patch) == 0 && in.Version == 0 {
		return api.Errorf(api.CodeInvalid, "the request has no body; send what changes as a JSON object")
	}
	v, err := s.svc.SetVMConfig(r.Context(), name, in)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, v)
	return nil
}

func (s *Server) getVMConfigHistory(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	limit := q.int("limit")
	name, err := pathName("VM", r)
	if err := errors.Join(err, q.err); err != nil {
		return err
	}
	list, err := s.svc.VMConfigHistory(r.Context(), name, limit)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, notNil(list))
	return nil
}

type peerKey struct{}

// withPeer notes who is at the other end of a connection: the user, of a Unix
// socket (SO_PEERCRED of unix(7)), else the address.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	peer := ""
	if u, ok := c.(*net.UnixConn); !ok {
		peer = c.RemoteAddr().String()
	} else if raw, err := u.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { // fails on a closed connection, which asks for nothing
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				peer = fmt.Sprintf("uid %d", cred.Uid)
			}
		})
	}
	return context.WithValue(ctx, peerKey{}, peer)
}

// peerOf returns what withPeer noted, "" for a request that came no such way.
func peerOf(r *http.Request) string {
	peer, _ := r.Context().Value(peerKey{}).(string)
	return peer
}
