package httpapi

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/volantvm/volant/client/api"
)

// maxReference bounds a reference or ID in a path, in bytes.
const maxReference = 512

// maxArchive bounds one archive of images, in bytes, as it is sent.
const maxArchive = 64 << 30

func loadParams() []param {
	return []param{
		{"name", "string", "reference for an archive with one image that does not say its own"},
		{"form", "string", "disk (default) or initramfs"},
	}
}

func removeImageParams() []param {
	return []param{{"force", "boolean", "remove all references of an image"}}
}

// imageRef returns the {ref...} of the path.
func imageRef(r *http.Request) (string, error) {
	ref := r.PathValue("ref")
	if ref == "" || len(ref) > maxReference {
		return "", api.Errorf(api.CodeInvalid, "%.80q is not the reference or ID of an image", ref)
	}
	return ref, nil
}

func (s *Server) listImages(w http.ResponseWriter, r *http.Request) error {
	return sendSelected(w, r, func() ([]api.Image, error) { return s.svc.Images(r.Context()) },
		func(img api.Image) map[string]string { return img.Config.Labels }, func(list []api.Image) any {
			for i := range list {
				list[i].References = notNil(list[i].References)
			}
			return list
		})
}

func (s *Server) getImage(w http.ResponseWriter, r *http.Request) error {
	ref, err := imageRef(r)
	if err != nil {
		return err
	}
	img, err := s.svc.Image(r.Context(), ref)
	if err != nil {
		return err
	}
	img.References = notNil(img.References)
	writeJSON(w, http.StatusOK, img)
	return nil
}

func (s *Server) removeImage(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	force := q.bool("force", false)
	if q.err != nil {
		return q.err
	}
	ref, err := imageRef(r)
	if err != nil {
		return err
	}
	out, err := s.svc.RemoveImage(r.Context(), ref, force)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, removed(out))
	return nil
}

func (s *Server) pruneImages(w http.ResponseWriter, r *http.Request) error {
	var in api.ImagePrune
	if err := decodeOptional(w, r, &in); err != nil {
		return err
	}
	out, err := s.svc.PruneImages(r.Context(), in)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, removed(out))
	return nil
}

func removed(out api.ImageRemoved) api.ImageRemoved {
	out.Untagged, out.Removed = notNil(out.Untagged), notNil(out.Removed)
	return out
}

func (s *Server) pullImage(w http.ResponseWriter, r *http.Request) error {
	var in api.ImagePull
	if err := decode(w, r, &in); err != nil {
		return err
	}
	return s.imageWork(w, r, func(ctx context.Context, progress func(api.ImageProgress)) ([]api.Image, error) {
		img, err := s.svc.PullImage(ctx, in, progress)
		return []api.Image{img}, err
	})
}

func (s *Server) loadImage(w http.ResponseWriter, r *http.Request) error {
	q := newQuery(r)
	form := api.ImageForm(q.oneOf("form", string(api.FormDisk), string(api.FormInitramfs)))
	name := q.str("name")
	if q.err != nil {
		return q.err
	}
	rc := http.NewResponseController(w)
	// The answer begins while the archive is still sent.
	_ = rc.EnableFullDuplex() // HTTP/2 has it anyway
	body := &movingReader{r: http.MaxBytesReader(w, r.Body, maxArchive), rc: rc}
	err := s.imageWork(w, r, func(ctx context.Context, progress func(api.ImageProgress)) ([]api.Image, error) {
		images, err := s.svc.LoadImage(ctx, body, name, form, progress)
		if err != nil && body.err != nil {
			err = body.err // why the daemon got no more is more telling than that it got no more
		}
		return images, err
	})
	if body.err == nil {
		_, _ = io.CopyN(io.Discard, body, maxDrain) // see putBlob
	}
	_ = rc.SetReadDeadline(time.Time{})
	return err
}

// imageWork answers with a line for each piece of progress that work makes, and
// for each image. An error is a line too, once there was another.
func (s *Server) imageWork(w http.ResponseWriter, r *http.Request, work func(context.Context, func(api.ImageProgress)) ([]api.Image, error)) error {
	ctx, stop := s.untilClosing(r.Context())
	defer stop()
	out := &lines{out: newStream(w, mediaNDJSON)}
	out.enc = json.NewEncoder(out.out)
	out.enc.SetEscapeHTML(false)
	beat := out.beat(ctx, s.heartbeat)
	images, err := work(ctx, func(p api.ImageProgress) {
		if out.send(p) != nil {
			stop() // the client left
		}
	})
	cancelled := ctx.Err() != nil
	stop()
	<-beat
	switch {
	case r.Context().Err() != nil:
		return nil // the client left
	case err != nil && cancelled:
		err = errClosing
	}
	for i := range images {
		if err != nil && images[i].ID == "" {
			continue
		}
		images[i].References = notNil(images[i].References)
		if sendErr := out.send(api.ImageProgress{Image: &images[i]}); sendErr != nil {
			return sendErr
		}
	}
	if err == nil {
		return nil
	}
	if !out.begun() {
		return err
	}
	w.(*response).failed = true
	return out.send(api.ImageProgress{Error: s.publicError(r, w.Header().Get(api.HeaderRequestID), err)})
}

// lines writes JSON objects, one a line. It is safe for concurrent use.
type lines struct {
	mu  sync.Mutex
	out *stream       // guarded by mu
	enc *json.Encoder // guarded by mu; on out
}

func (l *lines) send(v any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.enc.Encode(v); err != nil {
		return err
	}
	return l.out.flush()
}

func (l *lines) begun() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.begun
}

// beat sends an empty object every interval, once there was a line, so that both
// ends notice a connection that died. The channel is closed when it sends no more.
func (l *lines) beat(ctx context.Context, interval time.Duration) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(interval)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			if l.begun() && l.send(api.ImageProgress{}) != nil {
				return // the next line meets the same error
			}
		}
	}()
	return done
}
