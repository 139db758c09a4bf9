//go:build ignore

/*
 * The shim: the first process of a guest whose agent is on a disk of its own. It finds that disk, mounts it read-only, and becomes
 * kestrel, which is on it. Before that it follows the plan, where the guest has one: that starts the workload, which then need not
 * wait for kestrel (package guest/plan). A plan that does not work out is left where it is, and kestrel does everything.
 *
 * Where the kernel has modules they are in the initramfs too, and are loaded first.
 *
 * The kernel parameter volant.agent= names the disk: by its device ("/dev/pmem0"), else by its virtio serial. The disk holds erofs
 * with the program "kestrel" in its root. On persistent memory it is mapped without a copy (DAX), where the kernel can.
 *
 * The mount is attached nowhere (fsmount(2)): no path leads to it, nothing need unmount it, and it lives for as long as the program
 * runs that was executed from it. /proc, /sys and /dev stay mounted, as kestrel would mount them.
 *
 * What fails is said on the console, by the kernel's log, and the machine powers off. Unless it is process 1 on a root of ramfs or
 * tmpfs, and the kernel command line has volant.agent=, the shim refuses to do anything.
 *
 * It is linked with no C library, and needs only the headers of one (libc6-dev). go generate runs gcc; see shim.go.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/reboot.h>
#include <linux/sysinfo.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>

#include "account.h"

#define PARAM "volant.agent=" /* wire.ParamAgent */
#define PLAN_PARAM "volant.plan=" /* wire.ParamPlan */
#define CONFIG "volant-config" /* wire.ConfigSerial */
#define STARTS "VOLANT_SHIM=" /* wire.EnvShim */
#define MODULES "/lib/modules/volant/" /* wire.ModulesDir */
#define WAIT_MS 30000 /* for a disk to appear whose driver is slow; most are there before process 1 */
#define READ_AHEAD (256 << 10) /* bytes */
#define SMALL (64ul << 20)   /* bytes of memory, those of the kernel left out */
#define MAX_VALUE 64  /* bytes of the parameter: a serial has 20 at most */

#if !defined(__x86_64__)
#error "shim: amd64 only"
#endif

static long sys(long n, long a, long b, long c, long d, long e)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;

	__asm__ volatile("syscall" : "=a"(ret) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return ret;
}

/* The kernel enters with the stack aligned to 16, argc and argv on it; a C function expects it 8 off, as after a call. */
__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tmov %rsp,%rdi\n\tcall run\n\thlt\n");

/* With -ffreestanding gcc may still call these two. */
void *memset(void *p, int c, unsigned long n)
{
	volatile char *q = p;

	while (n--)
		*q++ = c;
	return p;
}

void *memcpy(void *to, const void *from, unsigned long n)
{
	volatile char *q = to;
	const char *f = from;

	while (n--)
		*q++ = *f++;
	return to;
}

/* Appends s to the string that ends at p, and returns its new end. */
static char *put(char *p, const char *s)
{
	while (*s)
		*p++ = *s++;
	*p = 0;
	return p;
}

static char *put_number(char *p, unsigned long n)
{
	char digits[24], *d = digits + sizeof(digits) - 1;

	*d = 0;
	do
		*--d = '0' + n % 10;
	while (n /= 10);
	return put(p, d);
}

static int equal(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

/* CLOCK_BOOTTIME in nanoseconds. */
static unsigned long now(void)
{
	struct timespec t = { 0 };

	sys(__NR_clock_gettime, CLOCK_BOOTTIME, (long)&t, 0, 0, 0);
	return t.tv_sec * 1000000000ul + t.tv_nsec;
}

/* Adds a line to the kernel's log. It is on every console when write returns; process 1 may have no console of its own. */
static void say(const char *line)
{
	const char *end = line;
	long fd = sys(__NR_open, (long)"/dev/kmsg", O_WRONLY, 0, 0, 0);

	while (*end)
		end++;
	sys(__NR_write, fd < 0 ? 2 : fd, (long)line, end - line, 0, 0);
	if (fd >= 0)
		sys(__NR_close, fd, 0, 0, 0, 0);
}

/* Says what failed, at a level that "quiet" lets pass, and powers the machine off. */
static __attribute__((noreturn)) void fail(const char *what, const char *subject, long err)
{
	char line[512], *p = line;

	p = put(p, "<3>volant: shim: cannot ");
	p = put(p, what);
	p = put(p, subject);
	if (err < 0) {
		p = put(p, ": error ");
		p = put_number(p, -err);
	}
	put(p, "\n");
	say(line);
	for (;;) { /* process 1 must not return */
		sys(__NR_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, 0, 0);
		sys(__NR_sched_yield, 0, 0, 0, 0, 0);
	}
}

static __attribute__((noreturn)) void refuse(void)
{
	static const char why[] = "volant shim: refused: this runs only as process 1 of a Volant guest\n";

	sys(__NR_write, 2, (long)why, sizeof(why) - 1, 0, 0);
	for (;;)
		sys(__NR_exit_group, 1, 0, 0, 0, 0);
}

/* Reads up to size-1 bytes of a file into p and ends them with a zero; returns how many, or an error. */
static long slurp(const char *path, char *p, long size)
{
	long fd, n;

	fd = sys(__NR_open, (long)path, O_RDONLY | O_CLOEXEC, 0, 0, 0);
	if (fd < 0)
		return fd;
	n = sys(__NR_read, fd, (long)p, size - 1, 0, 0);
	sys(__NR_close, fd, 0, 0, 0, 0);
	p[n > 0 ? n : 0] = 0;
	return n;
}

static void mount(const char *type, const char *at, long flags, const char *options)
{
	long err;

	sys(__NR_mkdir, (long)at, 0755, 0, 0, 0);
	err = sys(__NR_mount, (long)type, (long)at, (long)type, flags, (long)options);
	if (err < 0 && err != -EBUSY) /* mounted already, by the kernel */
		fail("mount ", at, err);
}

/*
 * Loads the kernel's modules, in the order of the list that comes with them (wire.ModulesDir). One that fails is said and may not be
 * missed. The list is removed: kestrel need not try again.
 */
static void load_modules(void)
{
	char list[8192], path[300], line[400], *name, *end;
	long fd, err, n;

	n = slurp(MODULES "order", list, sizeof(list));
	if (n <= 0)
		return; /* everything is built in */
	for (name = list; *name; name = end) {
		for (end = name; *end && *end != '\n'; end++)
			;
		if (*end)
			*end++ = 0;
		if (!*name || end - name > 200)
			continue;
		put(put(path, MODULES), name);
		err = fd = sys(__NR_open, (long)path, O_RDONLY | O_CLOEXEC, 0, 0, 0);
		if (fd >= 0) {
			err = sys(__NR_finit_module, fd, (long)"", 0, 0, 0);
			sys(__NR_close, fd, 0, 0, 0, 0);
		}
		if (err < 0 && err != -EEXIST) {
			put(put_number(put(put(put(line, "<4>volant: shim: cannot load "), path), ": error "), -err), "\n");
			say(line);
		}
	}
	sys(__NR_unlink, (long)MODULES "order", 0, 0, 0, 0);
}

/* Copies the last value of a parameter of the command line, whose name ends with "="; returns whether there is one that fits. */
static int parameter(const char *line, const char *key, char *value)
{
	const char *p, *k;
	char *v;
	int found = 0;

	for (p = line; *p; p++) {
		if (p != line && p[-1] != ' ')
			continue;
		for (k = key; *k && *p == *k; k++)
			p++;
		if (*k) {
			if (!*p)
				break;
			continue;
		}
		for (v = value; *p && *p != ' ' && *p != '\n' && v < value + MAX_VALUE - 1; p++)
			*v++ = *p;
		*v = 0;
		found = v != value && (!*p || *p == ' ' || *p == '\n');
		if (!*p)
			break;
	}
	return found;
}

struct dirent64 {
	unsigned long ino, off;
	unsigned short reclen;
	unsigned char type;
	char name[];
};

/* Disks that were asked for their serial, which is a request to the hypervisor. */
static struct disk {
	char device[48], serial[MAX_VALUE];
} disks[32];
static int known;

static int recall(const char *serial, char *path)
{
	int i;

	for (i = 0; i < known; i++) {
		if (equal(disks[i].serial, serial)) {
			put(path, disks[i].device);
			return 1;
		}
	}
	return 0;
}

/* Finds the disk with a serial, and writes its device to path, with room for 48 bytes; returns whether there is one. */
static int find(const char *serial, char *path)
{
	char dir[2048], file[300];
	struct dirent64 *e;
	struct disk *d;
	long fd, n, at, m;

	if (recall(serial, path))
		return 1;
	fd = sys(__NR_open, (long)"/sys/block", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0, 0, 0);
	if (fd < 0)
		fail("open ", "/sys/block", fd);
	known = 0;
	while ((n = sys(__NR_getdents64, fd, (long)dir, sizeof(dir), 0, 0)) > 0) {
		for (at = 0; at < n && known < (int)(sizeof(disks) / sizeof(*disks)); at += e->reclen) {
			e = (struct dirent64 *)(dir + at);
			if (e->name[0] == '.')
				continue;
			d = &disks[known];
			put(put(put(file, "/sys/block/"), e->name), "/serial");
			m = slurp(file, d->serial, sizeof(d->serial));
			if (m <= 0)
				continue;
			if (d->serial[m - 1] == '\n')
				d->serial[m - 1] = 0;
			put(put(d->device, "/dev/"), e->name);
			known++;
		}
	}
	sys(__NR_close, fd, 0, 0, 0, 0);
	return recall(serial, path);
}

/* Waits for the disk that the parameter names, and writes its device to path. */
static void await(const char *disk, char *path)
{
	struct timespec pause = { 0, 5000000 };
	unsigned long deadline = now() + WAIT_MS * 1000000ul;

	for (;;) {
		if (disk[0] != '/') {
			if (find(disk, path))
				return;
		} else if (sys(__NR_access, (long)disk, 0, 0, 0, 0) == 0) {
			put(path, disk);
			return;
		}
		if (now() > deadline)
			fail("find the agent's disk ", disk, 0);
		sys(__NR_nanosleep, (long)&pause, 0, 0, 0, 0);
	}
}

/*
 * Has more read at once than the kernel's 128 KiB: starting kestrel touches its file all over, and each request wakes the VMM, which
 * costs more than what it copies. A boot reads 14 MB in 85 requests; with 1 MiB at once 19 MB in 33, and since each page
 * costs too, that took 5 % more processor time under emulation, as did the kernel's 128 KiB. Where it cannot be had, it takes longer. A guest with little memory would
 * only have to give up other pages for it.
 */
static void read_ahead(const char *device)
{
	struct sysinfo si = { 0 };
	long fd;

	sys(__NR_sysinfo, (long)&si, 0, 0, 0, 0);
	if (si.totalram * si.mem_unit < SMALL)
		return;
	fd = sys(__NR_open, (long)device, O_RDONLY | O_CLOEXEC, 0, 0, 0);
	if (fd >= 0) {
		sys(__NR_ioctl, fd, BLKRASET, READ_AHEAD / 512, 0, 0);
		sys(__NR_close, fd, 0, 0, 0, 0);
	}
}

/*
 * Lets programs have address space that they may never touch. A Go program has 34 MB of it from its start, for a map of its heap; of
 * a machine with less memory than that the kernel would refuse it, and kill the program before its first instruction.
 */
static void overcommit(void)
{
	long fd = sys(__NR_open, (long)"/proc/sys/vm/overcommit_memory", O_WRONLY | O_CLOEXEC, 0, 0, 0);

	if (fd >= 0) {
		sys(__NR_write, fd, (long)"1", 1, 0, 0);
		sys(__NR_close, fd, 0, 0, 0, 0);
	}
}

/* Mounts a device read-only, nowhere, and returns the mount's root; an error is negative. */
static long attach(const char *device, int dax)
{
	long fs, err, root;

	fs = sys(__NR_fsopen, (long)"erofs", FSOPEN_CLOEXEC, 0, 0, 0);
	if (fs < 0)
		fail("mount the agent's disk: this kernel does not know ", "erofs", fs);
	err = sys(__NR_fsconfig, fs, FSCONFIG_SET_STRING, (long)"source", (long)device, 0);
	if (err >= 0)
		err = sys(__NR_fsconfig, fs, FSCONFIG_SET_FLAG, (long)"ro", 0, 0);
	if (err >= 0 && dax)
		err = sys(__NR_fsconfig, fs, FSCONFIG_SET_STRING, (long)"dax", (long)"always", 0);
	if (err >= 0)
		err = sys(__NR_fsconfig, fs, FSCONFIG_CMD_CREATE, 0, 0, 0);
	root = err < 0 ? err : sys(__NR_fsmount, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0);
	sys(__NR_close, fs, 0, 0, 0, 0);
	return root;
}

/* A plan, as package guest/plan lays it out. The operations follow, and then what they point to. */
struct plan {
	char magic[8];
	unsigned int size, count;    /* of all in bytes, and of operations */
	unsigned long sum;           /* FNV-1a of what follows this struct */
	int pid, out, err;           /* results: the workload, and the files that its output is read from */
	volatile int failed;         /* why the child could not be, as a negative errno */
};

struct op {
	unsigned short nr;           /* of the system call, or one of below */
	unsigned char kind[6];       /* of each argument */
	int allow;                   /* an errno that is none, or ANY */
	unsigned int result;         /* where that goes, if not 0 */
	unsigned long arg[5];
};

enum { VALUE, ADDRESS, NUMBER }; /* kinds: itself, where it is in the plan, the int there */
enum { EQUAL = 0xff00, FLAGS, CLOCK, POINT, SKIP, DISK, CONTROLLERS, ACCOUNT }; /* beside system calls */

#define ANY (-1) /* of errors */

/* The memory for a plan: package guest/plan makes none that is larger. */
static union {
	struct plan head;
	char bytes[64 << 10];
} plan;

static char passwd[32 << 10], group[32 << 10];

/* Reads a file that may be missing, whole. */
static long whole(const char *path, char *p, long size, struct text *t)
{
	long n = slurp(path, p, size);

	if (n == -ENOENT)
		n = 0;
	if (n == size - 1)
		return -EFBIG;
	t->p = p;
	t->end = p + (n < 0 ? 0 : n);
	return n;
}

static long look_up(const char *user, const char *named, struct account *a, char *home)
{
	struct text users, groups;
	long n;

	if ((n = whole("/etc/passwd", passwd, sizeof(passwd), &users)) < 0 || (n = whole("/etc/group", group, sizeof(group), &groups)) < 0)
		return n;
	return account(users, groups, text(user), named, a, home);
}

/* Turns on those controllers of a control group that are in a list, for the groups below it. */
static long enable(const char *dir, const char *list)
{
	char path[300], known[512], on[1024], *p = on;
	struct text all = { known, known }, wanted, name;
	long fd, n;

	put(put(path, dir), "/cgroup.controllers");
	n = whole(path, known, sizeof(known), &all);
	if (n < 0)
		return n;
	if (all.p < all.end && all.end[-1] == '\n')
		all.end--;
	while (all.p < all.end) {
		name = cut(&all, ' ');
		for (wanted = text(list); wanted.p < wanted.end;) {
			if (!alike(cut(&wanted, ' '), name))
				continue;
			p = put(p, " +");
			while (name.p < name.end)
				*p++ = *name.p++;
			break;
		}
	}
	if (p == on)
		return 0;
	put(path + (text(dir).end - dir), "/cgroup.subtree_control");
	fd = sys(__NR_open, (long)path, O_WRONLY | O_CLOEXEC, 0, 0, 0);
	if (fd < 0)
		return fd;
	n = sys(__NR_write, fd, (long)(on + 1), p - on - 1, 0, 0);
	sys(__NR_close, fd, 0, 0, 0, 0);
	return n;
}

static int same(const char *a, const char *b, unsigned long n)
{
	while (n && *a == *b)
		a++, b++, n--;
	return !n;
}

/*
 * Follows operations; returns 0, or the error of the first that failed. One is clone3 with CLONE_VM and CLONE_VFORK: the child follows
 * the next ones, their number being its third argument, on this very stack, and never returns from here, while the parent waits.
 */
static __attribute__((noinline)) long follow(struct op *op, struct op *end)
{
	long a[5], ret;
	int i;

	for (; op < end; op++) {
		for (i = 0; i < 5; i++) {
			a[i] = op->arg[i];
			if (op->kind[i] != VALUE)
				a[i] += (long)plan.bytes;
			if (op->kind[i] == NUMBER)
				a[i] = *(int *)a[i];
		}
		switch (op->nr) {
		case EQUAL:
			ret = same((char *)a[0], (char *)a[1], a[2]) ? 0 : -ENODEV;
			break;
		case FLAGS:
			ret = (*(short *)a[0] & a[1]) == a[1] ? 0 : -ENOLINK;
			break;
		case CLOCK: {
			unsigned long t = a[0] + now();
			struct timespec ts = { t / 1000000000ul, t % 1000000000ul };

			ret = sys(__NR_clock_settime, CLOCK_REALTIME, (long)&ts, 0, 0, 0);
			break;
		}
		case POINT:
			*(long *)a[0] = a[1];
			ret = 0;
			break;
		case SKIP:
			ret = sys(__NR_access, a[0], 0, 0, 0, 0);
			if (ret < 0 && ret != -ENOENT)
				break;
			if ((ret == 0) == a[2])
				op += a[1];
			ret = 0;
			break;
		case DISK:
			ret = find((char *)a[0], (char *)a[1]) ? 0 : -ENODEV;
			break;
		case CONTROLLERS:
			ret = enable((char *)a[0], (char *)a[1]);
			break;
		case ACCOUNT:
			ret = look_up((char *)a[0], (char *)a[1], (struct account *)a[2], (char *)a[3]);
			break;
		case __NR_clone3:
			/* Not by sys(): its return address would be the child's to overwrite. */
			__asm__ volatile("syscall" : "=a"(ret) : "a"(__NR_clone3), "D"(a[0]), "S"(a[1]) : "rcx", "r11", "memory");
			if (ret == 0) {
				ret = follow(op + 1, op + 1 + a[2]);
				plan.head.failed = ret < 0 ? ret : -ENOEXEC;
				for (;;)
					sys(__NR_exit, 253, 0, 0, 0, 0);
			}
			if (ret > 0 && plan.head.failed) {
				sys(__NR_wait4, ret, 0, 0, 0, 0);
				ret = plan.head.failed;
			}
			if (ret < 0)
				return ret;
			*(int *)(plan.bytes + op->result) = ret;
			op += a[2];
			continue;
		default:
			ret = sys(op->nr, a[0], a[1], a[2], a[3], a[4]);
		}
		if (ret < 0 && op->allow != ANY && ret != -op->allow && !plan.head.pid) /* the workload runs: it must not be started again */
			return ret;
		if (op->result)
			*(int *)(plan.bytes + op->result) = ret;
	}
	return 0;
}

/* Reads a number of decimal digits, and moves p behind it. */
static unsigned long number(const char **p)
{
	unsigned long n = 0;

	while (**p >= '0' && **p <= '9')
		n = 10 * n + *(*p)++ - '0';
	return n;
}

/* Follows the plan that is at "OFFSET,SIZE" of the configuration disk; returns whether the workload runs. */
static int follow_plan(const char *where)
{
	unsigned long offset, size, i, sum = 0xcbf29ce484222325ul;
	char device[300], line[100], *p;
	long fd, n;

	offset = number(&where);
	if (*where++ != ',')
		return 0;
	size = number(&where);
	if (*where || size > sizeof(plan) || size < sizeof(plan.head) || !find(CONFIG, device))
		return 0;
	fd = sys(__NR_open, (long)device, O_RDONLY | O_CLOEXEC, 0, 0, 0);
	if (fd < 0)
		return 0;
	n = sys(__NR_pread64, fd, (long)&plan, size, offset, 0);
	sys(__NR_close, fd, 0, 0, 0, 0);
	for (i = sizeof(plan.head); i < size; i++)
		sum = (sum ^ (unsigned char)plan.bytes[i]) * 0x100000001b3ul;
	if (n != (long)size || !same(plan.head.magic, "volplan2", 8) || plan.head.size != size || plan.head.sum != sum ||
	    plan.head.count > (size - sizeof(plan.head)) / sizeof(struct op))
		n = -EBADMSG;
	else
		n = follow((struct op *)(&plan.head + 1), (struct op *)(&plan.head + 1) + plan.head.count);
	if (n < 0) {
		p = put(line, "<6>volant: shim: the plan was left to the agent: error ");
		put(put_number(p, -n), "\n");
		say(line);
	}
	return n >= 0;
}

__attribute__((used, noreturn)) void run(long *stack)
{
	char line[4096], disk[MAX_VALUE], where[MAX_VALUE], device[300], starts[200], *p;
	char *argv[] = { "kestrel", 0 }, *envp[32];
	char **env = (char **)(stack + 1 + *stack + 1);
	unsigned long began = now(), from, to;
	struct statfs root;
	long fd, err, n = 0;
	int planned;

	if (sys(__NR_getpid, 0, 0, 0, 0, 0) != 1 || sys(__NR_statfs, (long)"/", (long)&root, 0, 0, 0) < 0 ||
	    (root.f_type != RAMFS_MAGIC && root.f_type != TMPFS_MAGIC))
		refuse();
	mount("proc", "/proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
	if (slurp("/proc/cmdline", line, sizeof(line)) <= 0 || !parameter(line, PARAM, disk)) {
		sys(__NR_umount2, (long)"/proc", 0, 0, 0, 0);
		refuse();
	}
	mount("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
	load_modules();
	mount("sysfs", "/sys", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0);
	await(disk, device);
	overcommit();
	from = now();
	planned = parameter(line, PLAN_PARAM, where) && follow_plan(where);
	to = now();
	fd = -1;
	if (disk[0] == '/')
		fd = attach(device, 1);
	if (fd < 0) {
		read_ahead(device);
		fd = attach(device, 0);
	}
	if (fd < 0)
		fail("mount the agent's disk ", device, fd);

	for (; *env && n < (long)(sizeof(envp) / sizeof(*envp)) - 2; env++)
		envp[n++] = *env;
	p = put_number(put(starts, STARTS), began);
	p = put_number(put(p, ","), now());
	if (planned) {
		p = put_number(put(p, ","), from);
		p = put_number(put(p, ","), to);
		p = put_number(put(p, ","), plan.head.pid);
		p = put_number(put(p, ","), plan.head.out);
		put_number(put(p, ","), plan.head.err);
	}
	envp[n++] = starts;
	envp[n] = 0;
	err = sys(__NR_execveat, fd, (long)"kestrel", (long)argv, (long)envp, 0);
	fail("execute kestrel of the agent's disk ", device, err);
}
