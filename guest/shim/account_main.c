//go:build ignore

/* account_main PASSWD GROUP USER [NAMED] - print what account.h finds in two files: a program for a test. */
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "account.h"

static struct text whole(const char *path)
{
	static char files[2][1 << 16];
	static int next;
	char *p = files[next++];
	int fd = open(path, O_RDONLY);
	long n = fd < 0 ? 0 : read(fd, p, sizeof(files[0]));

	return (struct text){ p, p + n };
}

int main(int argc, char **argv)
{
	char home[MAX_HOME];
	struct account a;
	struct text passwd = whole(argv[1]), group = whole(argv[2]);
	unsigned int i;

	if (account(passwd, group, text(argv[3]), argc > 4 ? argv[4] : 0, &a, home) < 0) {
		puts("error");
		return 0;
	}
	printf("%u %u [", a.uid, a.gid);
	for (i = 0; i < a.count; i++)
		printf(i ? " %u" : "%u", a.groups[i]);
	printf("] %s\n", home);
	return 0;
}
