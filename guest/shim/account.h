/*
 * Users and groups of an image: lookupUser of package guest, for the shim. What there is of each file is all of it; an empty one is
 * one that is not there.
 */
#include <errno.h>

#define MAX_GROUPS 64
#define MAX_HOME 1024 /* bytes, with the zero at its end */

struct text {
	const char *p, *end;
};

/* Package guest/plan knows the layout of this one. */
struct account {
	unsigned int uid, gid, count, groups[MAX_GROUPS];
};

static struct text text(const char *s)
{
	struct text t = { s, s };

	while (*t.end)
		t.end++;
	return t;
}

static int alike(struct text a, struct text b)
{
	while (a.p < a.end && b.p < b.end && *a.p == *b.p)
		a.p++, b.p++;
	return a.p == a.end && b.p == b.end;
}

/* Reads a uid or gid. The largest number means "no change" to the kernel, and is none. */
static int id(struct text t, unsigned int *n)
{
	unsigned long v = 0;

	if (t.p == t.end)
		return 0;
	for (; t.p < t.end; t.p++) {
		if (*t.p < '0' || *t.p > '9' || (v = 10 * v + *t.p - '0') >= 0xffffffff)
			return 0;
	}
	*n = v;
	return 1;
}

/* Takes what is before the next separator off t, and the separator. */
static struct text cut(struct text *t, char separator)
{
	struct text part = { t->p, t->p };

	while (part.end < t->end && *part.end != separator)
		part.end++;
	t->p = part.end < t->end ? part.end + 1 : t->end;
	return part;
}

static int space(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Takes the next line off a file that is one of fields, and returns how many of those there are, at most max; 0 after the last. */
static int fields(struct text *file, struct text *field, int max)
{
	while (file->p < file->end) {
		struct text line = cut(file, '\n');
		int n = 0;

		while (line.p < line.end && space(*line.p))
			line.p++;
		while (line.p < line.end && space(line.end[-1]))
			line.end--;
		if (line.p == line.end || *line.p == '#')
			continue;
		for (;;) {
			struct text part = cut(&line, ':');

			field[n++] = part;
			if (n == max || part.end == line.end)
				return n;
		}
	}
	return 0;
}

/* Whether a list with commas holds a name. */
static int lists(struct text list, struct text name)
{
	while (list.p < list.end) {
		if (alike(cut(&list, ','), name))
			return 1;
	}
	return 0;
}

/* Finds a user, and a group if that is not 0, and the home, if that is not 0; returns 0 or an error. */
static long account(struct text passwd, struct text group, struct text user, const char *named, struct account *a, char *home)
{
	struct text f[6], name = { 0, 0 };
	int numeric = id(user, &a->uid), n, found = 0;
	unsigned int other;

	a->gid = a->count = 0;
	if (home) {
		home[0] = '/';
		home[1] = 0;
	}
	while (!found && (n = fields(&passwd, f, 6)) != 0) {
		if (n < 6 || !(numeric ? id(f[2], &other) && other == a->uid : alike(f[0], user)))
			continue;
		if (!id(f[2], &a->uid) || !id(f[3], &a->gid))
			return -EINVAL;
		found = 1;
		name = f[0];
		if (home && f[5].p < f[5].end && *f[5].p == '/') {
			if (f[5].end - f[5].p >= MAX_HOME)
				return -ENAMETOOLONG;
			while (f[5].p < f[5].end)
				*home++ = *f[5].p++;
			*home = 0;
		}
	}
	if (!found && !numeric)
		return -ESRCH;
	if (named) {
		if (id(text(named), &a->gid))
			return 0;
		while ((n = fields(&group, f, 4)) != 0) {
			if (n >= 3 && alike(f[0], text(named)) && id(f[2], &a->gid))
				return 0;
		}
		return -ESRCH;
	}
	while (name.p < name.end && (n = fields(&group, f, 4)) != 0) {
		if (n < 4 || !lists(f[3], name) || !id(f[2], &other) || other == a->gid)
			continue;
		if (a->count == MAX_GROUPS)
			return -E2BIG;
		a->groups[a->count++] = other;
	}
	return 0;
}
