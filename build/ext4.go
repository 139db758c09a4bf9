package build

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"

	"github.com/volantvm/volant/build/layers"
)

const (
	ext4Block = 4096
	ext4Inode = 256
)

// ext4UUID is every disk's, as the file system's and as the seed of its
// directories' hashes: disks are told apart by digest.
const ext4UUID = "766f6c61-6e74-8000-8000-000000000001"

// ext4Config stands for mke2fs.conf: what mke2fs 1.47 does by itself, said once
// for all its versions and configurations; less resize_inode, which reserves
// blocks for growth that an image does not see.
const ext4Config = `[defaults]
	base_features = sparse_super,large_file,filetype,dir_index,ext_attr
	default_mntopts = acl,user_xattr
	enable_periodic_fsck = 0
	blocksize = 4096
	inode_size = 256
	inode_ratio = 16384
[fs_types]
	ext4 = {
		features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
	}
	floppy = {
		inode_ratio = 16384
	}
	small = {
		inode_ratio = 16384
	}
	big = {
		inode_ratio = 16384
	}
	huge = {
		inode_ratio = 16384
	}
`

// makeExt4 has mke2fs copy root into a file system in f.
func makeExt4(ctx context.Context, path string, f *os.File, t *layers.Tree, root string, o DiskOptions) error {
	size, inodes := ext4Size(t, o.SizeBufferMB)
	if err := f.Truncate(size); err != nil {
		return err
	}
	config := filepath.Join(filepath.Dir(root), "mke2fs.conf")
	if err := os.WriteFile(config, []byte(ext4Config), 0o600); err != nil {
		return err
	}
	args := []string{"-q", "-F", "-t", "ext4", "-b", strconv.Itoa(ext4Block), "-I", strconv.Itoa(ext4Inode), "-N", strconv.Itoa(inodes), "-m", "0",
		"-U", ext4UUID,
		"-E", "hash_seed=" + ext4UUID + ",lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0",
		"-d", root, toolFile, strconv.FormatInt(size/ext4Block, 10)}
	// The clock that mke2fs takes for its own times. Newer ones bring the times
	// of files down to it, so it is the latest of them.
	now := int64(1)
	for _, n := range t.Index() {
		now = max(now, n.ModSec)
	}
	epoch := strconv.FormatInt(now, 10)
	env := []string{"E2FSPROGS_FAKE_TIME=" + epoch, "SOURCE_DATE_EPOCH=" + epoch, "MKE2FS_CONFIG=" + config}
	if err := runTool(ctx, f, path, args, env); err != nil {
		return err
	}
	if err := settleExt4(f, t.Root.Inode); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	if o.Preallocate {
		return preallocate(f, size)
	}
	return nil
}

// ext4Size returns the bytes of a file system that holds t and has room left,
// and its number of inodes.
func ext4Size(t *layers.Tree, bufferMB int) (size int64, inodes int) {
	var blocks int64
	nodes := t.Index()
	for _, n := range nodes {
		switch n.Type() {
		case layers.ModeRegular:
			for _, x := range n.Extents() {
				blocks += (x.Length+ext4Block-1)/ext4Block + 1
			}
		case layers.ModeDir:
			var names int64
			for _, c := range n.Children() {
				names += int64(len(c.Name)) + 12
			}
			blocks += 1 + names*3/2/ext4Block // blocks of an index are not full
		case layers.ModeSymlink:
			if n.Size >= 60 {
				blocks++
			}
		}
		if len(n.Xattrs()) > 0 {
			blocks++
		}
	}
	const mib = 1 << 20 / ext4Block
	buffer := min(max(blocks/4, 64*mib), 1024*mib)
	if bufferMB > 0 {
		buffer = int64(bufferMB) * mib
	}
	inodes = len(nodes) + len(nodes)/10 + 1024
	blocks += buffer + int64(inodes)*ext4Inode/ext4Block
	blocks += blocks/64 + 2*mib // bitmaps, and group descriptors with their copies
	// The journal, as mke2fs sizes it.
	switch {
	case blocks < 128*mib:
		blocks += 4 * mib
	case blocks < 1024*mib:
		blocks += 16 * mib
	case blocks < 2048*mib:
		blocks += 32 * mib
	case blocks < 16384*mib:
		blocks += 64 * mib
	default:
		blocks += 1024 * mib
	}
	return blocks * ext4Block, inodes
}

// settleExt4 replaces the change times that mke2fs copied from the extracted
// files, the one thing in its output that differs from run to run, by the
// times of modification. It also gives the root directory its attributes, which
// mke2fs does not copy; not its extended ones. Layout: the kernel's Documentation/filesystems/ext4,
// "Super Block", "Block Group Descriptors", "Inode Table" and "Checksums".
func settleExt4(f *os.File, root *layers.Inode) error {
	le, sb := binary.LittleEndian, make([]byte, 1024)
	if _, err := f.ReadAt(sb, 1024); err != nil {
		return err
	}
	const metadataCsum, rootIno = 0x400, 2
	perGroup, inodeSize, descSize := int64(le.Uint32(sb[0x28:])), int64(le.Uint16(sb[0x58:])), int64(32)
	if le.Uint32(sb[0x60:])&0x80 != 0 { // 64bit
		descSize = int64(le.Uint16(sb[0xFE:]))
	}
	if le.Uint16(sb[0x38:]) != 0xEF53 || le.Uint32(sb[0x18:]) != 2 || inodeSize != ext4Inode || perGroup == 0 || le.Uint32(sb[0x64:])&metadataCsum == 0 {
		return errors.New("mke2fs made another ext4 than it was asked for")
	}
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	seed := crc32.Update(0, castagnoli, sb[0x68:0x78]) // of the UUID
	total := int64(le.Uint32(sb[0:]))
	desc, inode, number := make([]byte, descSize), make([]byte, ext4Inode), make([]byte, 4)
	for group := int64(0); group*perGroup < total; group++ {
		if _, err := f.ReadAt(desc, ext4Block+group*descSize); err != nil {
			return err
		}
		table := int64(le.Uint32(desc[0x8:]))
		unused := int64(le.Uint16(desc[0x1C:]))
		if descSize >= 64 {
			table |= int64(le.Uint32(desc[0x28:])) << 32
			unused |= int64(le.Uint16(desc[0x32:])) << 16
		}
		for i := int64(0); i < min(perGroup, total-group*perGroup)-unused; i++ {
			at := table*ext4Block + i*ext4Inode
			if _, err := f.ReadAt(inode, at); err != nil {
				return err
			}
			if le.Uint16(inode) == 0 { // free
				continue
			}
			ino := uint32(group*perGroup + i + 1)
			if ino == rootIno {
				le.PutUint16(inode[0x00:], uint16(root.Mode))
				le.PutUint16(inode[0x02:], uint16(root.UID))
				le.PutUint16(inode[0x78:], uint16(root.UID>>16))
				le.PutUint16(inode[0x18:], uint16(root.GID))
				le.PutUint16(inode[0x7A:], uint16(root.GID>>16))
				le.PutUint32(inode[0x10:], uint32(root.ModSec))
				le.PutUint32(inode[0x88:], root.ModNsec<<2|uint32((root.ModSec-int64(int32(root.ModSec)))>>32)&3)
			}
			copy(inode[0x0C:0x10], inode[0x10:0x14]) // change time
			copy(inode[0x84:0x88], inode[0x88:0x8C]) // and its nanoseconds
			copy(inode[0x08:0x0C], inode[0x10:0x14]) // access time
			copy(inode[0x8C:0x90], inode[0x88:0x8C])
			le.PutUint16(inode[0x7C:], 0)
			le.PutUint16(inode[0x82:], 0)
			le.PutUint32(number, ino)
			sum := crc32.Update(seed, castagnoli, number)
			sum = crc32.Update(sum, castagnoli, inode[0x64:0x68]) // generation
			sum = ^crc32.Update(sum, castagnoli, inode)
			le.PutUint16(inode[0x7C:], uint16(sum))
			le.PutUint16(inode[0x82:], uint16(sum>>16))
			if _, err := f.WriteAt(inode, at); err != nil {
				return err
			}
		}
	}
	return nil
}
