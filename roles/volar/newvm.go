package volar

import (
	"fmt"

	"github.com/volantvm/volant/client"
	"github.com/volantvm/volant/client/api"
)

// prepare brings what req needs into the daemon's store: the image, when one is
// named, and the folders of the host in m. It completes req.
func (c *cli) prepare(cl *client.Client, req *api.VMCreate, m mounts, image string, f imageFlags) error {
	if image != "" {
		img, name, err := c.image(cl, image, f)
		if err != nil {
			return err
		}
		req.Image, req.Form = name, f.form()
		if f.PublishAll {
			if req.NetworkMode == api.NetworkVsock {
				return usagef("--publish-all needs a network; leave out --network")
			}
			if req.Ports, err = publishAll(img.Config, req.Ports); err != nil {
				return err
			}
		}
	}
	for _, note := range m.notes {
		c.notef("%s", note)
	}
	for _, folder := range m.folders {
		digest, err := c.uploadFolder(cl, folder.dir)
		if err != nil {
			return fmt.Errorf("--volume %s: %w", folder.dir, err)
		}
		req.Volumes[folder.volume].Blob = digest
	}
	return nil
}

// createVM creates a VM and waits for it as w says, with progress.
func (c *cli) createVM(cl *client.Client, req api.VMCreate, w client.Wait) (vm api.VM, err error) {
	if req.Name != "" {
		err = c.withProgress(cl, req.Name, func() (err error) {
			vm, err = cl.CreateVM(c.ctx, req, w)
			return err
		})
		return vm, err
	}
	// Only the daemon knows whose progress is to be told.
	vm, err = cl.CreateVM(c.ctx, req, noWait())
	if err != nil || w.For == api.WaitNone {
		return vm, err
	}
	err = c.withProgress(cl, vm.Name, func() (err error) {
		vm, err = cl.VM(c.ctx, vm.ID, w)
		return err
	})
	return vm, err
}
