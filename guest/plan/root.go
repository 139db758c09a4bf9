package plan

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/volantvm/volant/guest/wire"
)

// struct stat of asm/stat.h, and what of it is asked for; struct statfs.
const (
	statSize, statModeAt, statUIDAt, statGIDAt = 144, 24, 28, 32

	statfsSize = 120
)

const currentDir = ^uintptr(99) // AT_FDCWD

// root mounts the root, and what is to be seen in it of the initramfs: root.mount
// and graft of package guest, and the queues.
func (p *program) root(cfg wire.RootConfig) {
	for _, dir := range []string{LowerDir, UpperDir, RootDir} {
		p.mkdir(dir)
	}
	p.disk(wire.RootSerial, Mount{Target: LowerDir, Type: "erofs", Flags: unix.MS_RDONLY})
	if cfg.Upper == wire.UpperDisk {
		p.disk(wire.UpperSerial, Mount{Target: UpperDir, Type: "ext4", Data: Ext4Options})
	} else {
		p.mount(Mount{Source: "tmpfs", Target: UpperDir, Type: "tmpfs", Data: TmpfsOptions(0o755, cfg.SizeMiB)})
	}
	p.upper()
	p.mount(Mount{Source: "overlay", Target: RootDir, Type: "overlay", Data: OverlayOptions()})
	queues := Queues()
	p.call(unix.SYS_MKDIR, p.text(queues.Target), value(0o755)).ignore()
	p.mount(queues).ignore()
	for _, dir := range Grafted() {
		at, fd := RootDir+dir, p.space(4)
		p.mkdir(at)
		p.open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0, fd) // not where a link leads
		p.call(unix.SYS_CLOSE, number(fd))
		p.mount(Mount{Source: dir, Target: at, Flags: unix.MS_BIND | unix.MS_REC})
	}
	for _, s := range Sysctls() {
		p.write(s[0], 0, 0, []byte(s[1])).ignore()
	}
}

// disk mounts the disk with a serial.
func (p *program) disk(serial string, m Mount) {
	device := p.space(deviceSize)
	p.call(opDisk, p.text(serial), address(device))
	p.mount(m).args[0] = address(device)
}

// upper is makeUpper of package guest.
func (p *program) upper() {
	const dir, made = UpperDir + "/upper", UpperDir + "/upper.new"
	p.call(unix.SYS_MKDIR, p.text(UpperDir+"/work"), value(0o700)).allow(unix.EEXIST)
	skip := p.call(opSkip, p.text(dir), value(0), value(1))
	at := len(p.calls)
	p.mkdir(made)
	stat := p.space(statSize)
	p.call(unix.SYS_STAT, p.text(LowerDir), address(stat))
	p.call(unix.SYS_CHOWN, p.text(made), number(stat+statUIDAt), number(stat+statGIDAt))
	p.call(unix.SYS_CHMOD, p.text(made), number(stat+statModeAt)) // which ignores the type
	p.call(unix.SYS_RENAME, p.text(made), p.text(dir))
	skip.args[1] = value(uintptr(len(p.calls) - at))
}

// enter has the child change to the root, where it finds the machine's own files
// and its own processes: SwitchRoot and finish of package guest, and the fork there.
func (p *program) enter(own []File) {
	trees := make([]offset, len(own))
	for i, f := range own {
		trees[i] = p.space(4)
		p.call(unix.SYS_OPEN_TREE, value(currentDir), p.text(f.Staged()), value(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)).into(trees[i])
	}
	p.call(unix.SYS_CHDIR, p.text(RootDir))
	p.mount(Mount{Source: ".", Target: "/", Flags: unix.MS_MOVE})
	p.call(unix.SYS_CHROOT, p.text("."))
	p.call(unix.SYS_CHDIR, p.text("/"))
	p.mkdir("/etc")
	for i, f := range own {
		p.cover(f, trees[i])
	}
	p.call(unix.SYS_SYMLINK, p.text("/proc/mounts"), p.text("/etc/mtab")).allow(unix.EEXIST)
	p.call(unix.SYS_UMOUNT2, p.text("/proc"), value(unix.MNT_DETACH))
	p.mount(Mount{Source: "proc", Target: "/proc", Type: "proc", Flags: strict})
	limit := binary.LittleEndian.AppendUint64(nil, MaxOpenFiles)
	limit = binary.LittleEndian.AppendUint64(limit, MaxOpenFiles)
	p.call(unix.SYS_PRLIMIT64, value(0), value(unix.RLIMIT_NOFILE), p.bytes(limit))
}

// cover mounts a file over the image's, which is made where it is missing. That is
// where links lead; where they lead out of the image's files, or to none that is
// regular, kestrel decides.
func (p *program) cover(f File, tree offset) {
	fd, stat, statfs := p.space(4), p.space(statSize), p.space(statfsSize)
	p.open(f.Path, unix.O_RDONLY|unix.O_CREAT|unix.O_NONBLOCK|unix.O_NOCTTY, f.Perm, fd)
	p.call(unix.SYS_FSTAT, number(fd), address(stat))
	p.call(opFlags, address(stat+statModeAt), value(unix.S_IFREG))
	p.call(unix.SYS_FSTATFS, number(fd), address(statfs))
	p.call(opEqual, address(statfs), p.bytes(binary.LittleEndian.AppendUint64(nil, unix.OVERLAYFS_SUPER_MAGIC)), value(8))
	p.call(unix.SYS_CLOSE, number(fd))
	p.call(unix.SYS_MOVE_MOUNT, number(tree), p.text(""), value(currentDir), p.text(f.Path), value(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS))
	p.call(unix.SYS_CLOSE, number(tree))
}
