package httpapitest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/volantvm/volant/client/api"
)

// fullReference is the full form of the references that tests use.
func fullReference(ref string) string {
	ref = strings.TrimPrefix(ref, "docker://")
	if !strings.Contains(ref, "/") {
		ref = "docker.io/library/" + ref
	}
	if !strings.Contains(ref[strings.LastIndexByte(ref, '/'):], ":") && !strings.Contains(ref, "@") {
		ref += ":latest"
	}
	return ref
}

func digestOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// image returns the image of that reference, or ID, or its beginning. The caller
// holds mu.
func (s *Service) image(name string) (api.Image, error) {
	full := fullReference(name)
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		img := s.images[id]
		if slices.Contains(img.References, full) || strings.HasPrefix(id, name) || strings.HasPrefix(id, "sha256:"+name) {
			for _, vm := range s.vms {
				if vm.ImageID == id {
					img.VMs++
				}
			}
			return img, nil
		}
	}
	return api.Image{}, api.Errorf(api.CodeNotFound, "there is no image %q", name).WithHint("pull it first: volar images pull %s", name)
}

// putImage adds an image under a reference. The caller holds mu.
func (s *Service) putImage(ref string, form api.ImageForm) api.Image {
	id := digestOf(ref)
	img, ok := s.images[id]
	if !ok {
		img = api.Image{
			ID: id, References: []string{ref}, Platform: "linux/amd64", Layers: 2, Config: s.ImageConfig, CreatedAt: epoch(), PulledAt: s.now(),
		}
	}
	if form == api.FormInitramfs {
		img.Initramfs = digestOf("initramfs of " + ref)
		img.Size += 1 << 20
	} else {
		img.Disk = digestOf("disk of " + ref)
		img.Size += 8 << 20
	}
	img.LastUsed = s.now()
	s.images[id] = img
	s.emit(api.Event{Type: api.EventImagePulled, Name: ref, Message: id})
	return img
}

func (s *Service) Images(context.Context) ([]api.Image, error) {
	s.lock()
	defer s.mu.Unlock()
	var out []api.Image
	for id := range s.images {
		img, err := s.image(id)
		if err != nil {
			return nil, err
		}
		out = append(out, img)
	}
	slices.SortFunc(out, func(a, b api.Image) int { return cmp.Or(b.LastUsed.Compare(a.LastUsed), cmp.Compare(a.ID, b.ID)) })
	return out, s.Err["Images"]
}

func (s *Service) Image(_ context.Context, name string) (api.Image, error) {
	s.lock()
	defer s.mu.Unlock()
	return s.image(name)
}

// PullImage makes up an image, after two pieces of progress.
func (s *Service) PullImage(ctx context.Context, pull api.ImagePull, progress func(api.ImageProgress)) (api.Image, error) {
	if pull.Reference == "" {
		return api.Image{}, api.Errorf(api.CodeInvalid, "reference: is missing")
	}
	ref := fullReference(pull.Reference)
	if err := s.Err["PullImage"]; err != nil {
		return api.Image{}, err
	}
	progress(api.ImageProgress{Step: "resolve", Item: ref})
	progress(api.ImageProgress{Step: "download", Item: digestOf(ref), Done: 512, Total: 1024})
	if s.Pulling != nil {
		if err := s.Pulling(ctx); err != nil {
			return api.Image{}, err
		}
	}
	s.lock()
	defer s.mu.Unlock()
	s.auth = pull.Auth
	return s.putImage(ref, pull.Form), nil
}

// PulledWith returns the credentials of the last pull.
func (s *Service) PulledWith() *api.RegistryAuth {
	s.lock()
	defer s.mu.Unlock()
	return s.auth
}

// LoadImage takes an archive that is the references of its images, one a line.
func (s *Service) LoadImage(_ context.Context, r io.Reader, name string, form api.ImageForm, progress func(api.ImageProgress)) ([]api.Image, error) {
	if err := s.Err["LoadImage"]; err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	progress(api.ImageProgress{Step: "flatten", Done: int64(len(data)), Total: int64(len(data))})
	refs := strings.Fields(string(data))
	if name != "" {
		refs = []string{name}
	}
	if len(refs) == 0 {
		return nil, api.Errorf(api.CodeInvalid, "the archive holds no image")
	}
	s.lock()
	defer s.mu.Unlock()
	var out []api.Image
	for _, ref := range refs {
		out = append(out, s.putImage(fullReference(ref), form))
	}
	return out, nil
}

func (s *Service) RemoveImage(_ context.Context, name string, force bool) (api.ImageRemoved, error) {
	s.lock()
	defer s.mu.Unlock()
	img, err := s.image(name)
	if err != nil {
		return api.ImageRemoved{}, err
	}
	if img.VMs > 0 {
		return api.ImageRemoved{}, api.Errorf(api.CodeConflict, "image %s is in use by VMs", name).WithHint("delete them first")
	}
	delete(s.images, img.ID)
	s.emit(api.Event{Type: api.EventImageRemoved, Name: img.References[0], Message: img.ID})
	return api.ImageRemoved{Untagged: img.References, Removed: []string{img.ID}, Freed: img.Size}, nil
}

func (s *Service) PruneImages(_ context.Context, in api.ImagePrune) (api.ImageRemoved, error) {
	s.lock()
	defer s.mu.Unlock()
	var out api.ImageRemoved
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		img, err := s.image(id)
		if err != nil {
			return out, err
		}
		if img.VMs > 0 || !in.All && len(img.References) > 0 {
			continue
		}
		delete(s.images, id)
		out.Untagged, out.Removed = append(out.Untagged, img.References...), append(out.Removed, id)
		out.Freed += img.Size
	}
	return out, s.Err["PruneImages"]
}
