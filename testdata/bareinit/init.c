/*
 * The bare boot: the least /init that can answer an HTTP request. Benchmarks divide the time in which a Volant guest answers
 * by the time this takes with the same kernel, VMM and bridge, so what is left is Volant's own share.
 *
 * It takes its address from the kernel parameter bare.ip=A.B.C.D/LEN, gives it to eth0, prints "bare: ready" on the console
 * and answers whatever is sent to TCP port 8080 with the guest's /proc/meminfo. SIGTERM powers the machine off, and so does any failure, after a
 * line that says which. Virtio-net and the transport must be built into the kernel: it loads no modules.
 *
 * As a Volant guest's workload the same program serves the same answer: "init serve" does that and nothing else, and ends on
 * SIGTERM. So the two differ in what brought them up alone.
 *
 * It is linked with no C library, and needs only the headers of one (libc6-dev):
 *
 *	gcc -Os -static -nostdlib -ffreestanding -fno-stack-protector -fno-asynchronous-unwind-tables \
 *		-Wl,--build-id=none -Wl,-z,noseparate-code -s -o init init.c
 *
 * The result has 3 KB on amd64; arm64 is written from the manual and has not been run. Unless it is process 1 on a root of ramfs or
 * tmpfs it refuses to do anything.
 */
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/magic.h>
#include <linux/reboot.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>

#define PORT 8080
#define WAIT_MS 5000 /* for eth0 to appear, and for a client to send its request */

#if defined(__x86_64__)
static long sys(long n, long a, long b, long c, long d, long e)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;

	__asm__ volatile("syscall" : "=a"(ret) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return ret;
}
/* The kernel enters with the stack aligned to 16; a C function expects it 8 off, as after a call. */
__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tmov (%rsp),%rdi\n\tcall run\n\thlt\n");
#elif defined(__aarch64__)
static long sys(long n, long a, long b, long c, long d, long e)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
	return x0;
}
__asm__(".globl _start\n_start:\n\tldr x0,[sp]\n\tbl run\n\tbrk 1\n");
#else
#error "bareinit: amd64 and arm64 only"
#endif

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

static unsigned long length(const char *s)
{
	unsigned long n = 0;

	while (s[n])
		n++;
	return n;
}

static void say(const char *s)
{
	sys(__NR_write, 1, (long)s, length(s), 0, 0);
}

static __attribute__((noreturn)) void power_off(void)
{
	sys(__NR_sync, 0, 0, 0, 0, 0);
	sys(__NR_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, 0, 0);
	for (;;) /* process 1 must not return */
		sys(__NR_sched_yield, 0, 0, 0, 0, 0);
}

static int workload; /* not process 1 */

static long check(long ret, const char *what)
{
	if (ret < 0) {
		say("bare: cannot ");
		say(what);
		say("\n");
		while (workload)
			sys(__NR_exit_group, 1, 0, 0, 0, 0);
		power_off();
	}
	return ret;
}

static void sleep_ms(long ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	sys(__NR_clock_nanosleep, 1 /* monotonic */, 0, (long)&t, 0, 0);
}

/* Parses one decimal number up to max; -1 if there is none. Moves *p past it. */
static long number(const char **p, long max)
{
	long n = 0;
	const char *s = *p;

	while (*s >= '0' && *s <= '9' && n <= max)
		n = n * 10 + (*s++ - '0');
	if (s == *p || n > max)
		return -1;
	*p = s;
	return n;
}

/* Finds bare.ip=A.B.C.D/LEN; both results in host byte order. Returns -1 if it is missing or malformed. */
static int address(const char *line, unsigned *ip, unsigned *mask)
{
	static const char key[] = "bare.ip=";
	unsigned long i;
	long n;
	const char *p;

	for (p = line; *p; p++) {
		if (p != line && p[-1] != ' ')
			continue;
		for (i = 0; key[i] && p[i] == key[i]; i++)
			;
		if (!key[i])
			break;
	}
	if (!*p)
		return -1;
	p += sizeof(key) - 1;
	for (*ip = 0, i = 0; i < 4; i++) {
		n = number(&p, 255);
		if (n < 0 || *p++ != (i < 3 ? '.' : '/'))
			return -1;
		*ip = *ip << 8 | n;
	}
	n = number(&p, 32);
	if (n < 1 || (*p && *p != ' ' && *p != '\n'))
		return -1;
	*mask = ~0u << (32 - n);
	return 0;
}

static struct sockaddr_in inet(unsigned ip, unsigned short port)
{
	struct sockaddr_in a = { 0 };

	a.sin_family = AF_INET;
	a.sin_addr.s_addr = __builtin_bswap32(ip);
	a.sin_port = __builtin_bswap16(port);
	return a;
}

/*
 * Link first, address last. What a guest sends before the kernel has noticed the carrier (linkwatch, asynchronous) is
 * lost, and if that is the ARP request for the answer to an early connection the next comes a second later: seen in 5
 * boots of 21, and with this order in none of 14. Asking ethtool for the link makes the kernel notice at once
 * (ethtool_op_get_link, Linux 6.7 and later), and without an address there is nothing to send.
 */
static void network_up(unsigned ip, unsigned mask)
{
	struct ifreq r = { .ifr_name = "eth0" };
	struct ethtool_value link = { .cmd = ETHTOOL_GLINK };
	struct sockaddr_in a = inet(ip, 0), m = inet(mask, 0);
	long s, ret, waited;

	s = check(sys(__NR_socket, AF_INET, SOCK_DGRAM, 0, 0, 0), "open a socket");
	r.ifr_flags = IFF_UP | IFF_RUNNING;
	for (waited = 0; (ret = sys(__NR_ioctl, s, SIOCSIFFLAGS, (long)&r, 0, 0)) < 0 && waited < WAIT_MS; waited++)
		sleep_ms(1);
	check(ret, "bring eth0 up");
	r.ifr_data = (char *)&link;
	for (waited = 0; waited < WAIT_MS; waited++) {
		check(sys(__NR_ioctl, s, SIOCETHTOOL, (long)&r, 0, 0), "read the link of eth0");
		if (link.data)
			break;
		sleep_ms(1);
	}
	check(link.data ? 0 : -1, "see a carrier on eth0");
	memcpy(&r.ifr_addr, &a, sizeof(a));
	check(sys(__NR_ioctl, s, SIOCSIFADDR, (long)&r, 0, 0), "set the address of eth0");
	memcpy(&r.ifr_netmask, &m, sizeof(m));
	check(sys(__NR_ioctl, s, SIOCSIFNETMASK, (long)&r, 0, 0), "set the netmask of eth0");
	sys(__NR_close, s, 0, 0, 0, 0);
}

/* Reads up to the empty line that ends the request's head, so that closing does not reset the connection, and answers. */
static void answer(long c)
{
	static const char head[] = "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n";
	char b[4096];
	long n, got = 0, fd;
	struct pollfd p = { c, POLLIN, 0 };
	struct timespec t = { WAIT_MS / 1000, 0 };

	while (got < (long)sizeof(b) && sys(__NR_ppoll, (long)&p, 1, (long)&t, 0, 0) > 0) {
		n = sys(__NR_read, c, (long)(b + got), sizeof(b) - got, 0, 0);
		if (n <= 0)
			break;
		got += n;
		if (got >= 4 && b[got - 4] == '\r' && b[got - 3] == '\n' && b[got - 2] == '\r' && b[got - 1] == '\n')
			break;
	}
	memcpy(b, head, sizeof(head) - 1);
	got = sizeof(head) - 1;
	fd = sys(__NR_openat, AT_FDCWD, (long)"/proc/meminfo", O_RDONLY, 0, 0);
	n = sys(__NR_read, fd, (long)(b + got), sizeof(b) - got, 0, 0);
	sys(__NR_close, fd, 0, 0, 0, 0);
	sys(__NR_write, c, (long)b, got + (n > 0 ? n : 0), 0, 0);
	sys(__NR_close, c, 0, 0, 0, 0);
}

/* Answers until SIGTERM. */
static void serve(void)
{
	unsigned long terminate = 1ul << (SIGTERM - 1);
	struct sockaddr_in here = inet(0, PORT);
	struct pollfd fds[2];
	long c, on = 1;

	check(sys(__NR_rt_sigprocmask, SIG_BLOCK, (long)&terminate, 0, sizeof(terminate), 0), "block SIGTERM");
	fds[1].fd = check(sys(__NR_signalfd4, -1, (long)&terminate, sizeof(terminate), 0, 0), "open a signalfd");
	fds[0].fd = check(sys(__NR_socket, AF_INET, SOCK_STREAM, 0, 0, 0), "open a socket");
	sys(__NR_setsockopt, fds[0].fd, SOL_SOCKET, SO_REUSEADDR, (long)&on, sizeof(int));
	check(sys(__NR_bind, fds[0].fd, (long)&here, sizeof(here), 0, 0), "bind port 8080");
	check(sys(__NR_listen, fds[0].fd, 128, 0, 0, 0), "listen");
	say("bare: ready\n");

	fds[0].events = fds[1].events = POLLIN;
	for (;;) {
		fds[0].revents = fds[1].revents = 0;
		if (sys(__NR_ppoll, (long)fds, 2, 0, 0, 0) <= 0)
			continue;
		if (fds[1].revents)
			return;
		if (!fds[0].revents)
			continue;
		c = sys(__NR_accept4, fds[0].fd, 0, 0, 0, 0);
		if (c >= 0)
			answer(c);
	}
}

static __attribute__((noreturn)) void leave(int status)
{
	for (;;)
		sys(__NR_exit_group, status, 0, 0, 0, 0);
}

__attribute__((used, noreturn)) void run(long argc)
{
	struct statfs root;
	char line[4096];
	unsigned ip = 0, mask = 0;
	long fd, n;

	if (argc > 1) { /* a workload: the machine is another's */
		workload = 1;
		serve();
		leave(0);
	}
	if (sys(__NR_getpid, 0, 0, 0, 0, 0) != 1 || sys(__NR_statfs, (long)"/", (long)&root, 0, 0, 0) < 0 ||
	    (root.f_type != RAMFS_MAGIC && root.f_type != TMPFS_MAGIC)) {
		say("bare: only runs as process 1 of an initramfs\n");
		leave(1);
	}

	sys(__NR_mkdirat, AT_FDCWD, (long)"/proc", 0555, 0, 0);
	check(sys(__NR_mount, (long)"proc", (long)"/proc", (long)"proc", 0, 0), "mount /proc");
	fd = check(sys(__NR_openat, AT_FDCWD, (long)"/proc/cmdline", O_RDONLY, 0, 0), "open /proc/cmdline");
	n = check(sys(__NR_read, fd, (long)line, sizeof(line) - 1, 0, 0), "read /proc/cmdline");
	sys(__NR_close, fd, 0, 0, 0, 0);
	line[n] = 0;
	check(address(line, &ip, &mask), "find bare.ip=A.B.C.D/LEN on the kernel command line");
	network_up(ip, mask);
	serve();
	power_off();
}
