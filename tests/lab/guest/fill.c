/*
 * fill: puts one kind of memory into the guest, so that every dump level has something to leave out.
 *
 *   fill KIND SIZE      SIZE in bytes with a suffix K, M or G; for 'files' their number
 *
 * A kind that has to stay in memory is held by a child that sleeps for good; the parent returns once the
 * child has touched everything.  Built static on the host, because the guest has no compiler and no libc.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_HWPOISON
#define MADV_HWPOISON 100
#endif
#define PAGE 4096UL
#define HUGE (2UL << 20)
#define TEXT_BYTES (256UL << 10)

static uint64_t state = 0x9e3779b97f4a7c15ULL;
static char text[TEXT_BYTES + PAGE];

static void die(const char *what)
{
	fprintf(stderr, "fill: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t next(void) /* xorshift64: the same pages in every run */
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void make_text(void)
{
	static const char *const words[] = { "kernel", "memory", "error: ", "page ", "the ", "of ", "\n",
		"GET /index.html HTTP/1.1\r\n", "status=200 ", "0x", "user", "    return ", "dump ", "=", "1", "7" };
	size_t used = 0;

	while (used < sizeof(text)) {
		const char *word = words[next() % (sizeof(words) / sizeof(*words))];
		size_t len = strlen(word);

		if (len > sizeof(text) - used)
			len = sizeof(text) - used;
		memcpy(text + used, word, len);
		used += len;
	}
}

static void fill_zero(uint64_t *page)
{
	memset(page, 0, PAGE);
}

static void fill_text(uint64_t *page)
{
	memcpy(page, text + next() % TEXT_BYTES, PAGE);
}

static void fill_pointers(uint64_t *page) /* like a slab: kernel addresses, small counts, gaps */
{
	for (size_t i = 0; i < PAGE / 8; i += 4) {
		page[i] = 0xffff888000000000ULL | (next() & 0x3fffffc0ULL);
		page[i + 1] = next() & 0xff;
		page[i + 2] = 0;
		page[i + 3] = page[i] + 0x40;
	}
}

static void fill_random(uint64_t *page)
{
	for (size_t i = 0; i < PAGE / 8; i++)
		page[i] = next();
}

static void fill_mixed(char *at, size_t size) /* 1/8 zero, 3/8 text, 3/8 pointers, 1/8 random */
{
	static void (*const kinds[8])(uint64_t *) = { fill_zero, fill_text, fill_pointers, fill_text,
		fill_pointers, fill_random, fill_text, fill_pointers };

	for (size_t off = 0; off < size; off += PAGE)
		kinds[(off / PAGE) % 8]((uint64_t *)(at + off));
}

static char *map(size_t size, int flags)
{
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	if (at == MAP_FAILED)
		die("mmap");
	return at;
}

static void hint(char *at, size_t size, int advice, const char *name)
{
	if (madvise(at, size, advice) != 0)
		die(name);
}

static void do_anon(size_t size)
{
	char *at = map(size, 0);

	hint(at, size, MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE");
	fill_mixed(at, size);
}

static void do_thp(size_t size)
{
	char *at = map(size + HUGE, 0);

	at = (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));
	hint(at, size, MADV_HUGEPAGE, "MADV_HUGEPAGE");
	fill_mixed(at, size);
}

static void do_huge(size_t size)
{
	fill_mixed(map(size, MAP_HUGETLB), size);
}

static void do_ksm(size_t size) /* eight different pages, over and over */
{
	char *at = map(size, 0);

	hint(at, size, MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE");
	for (size_t off = 0; off < size; off += PAGE)
		memset(at + off, 'A' + (int)((off / PAGE) % 8), PAGE);
	hint(at, size, MADV_MERGEABLE, "MADV_MERGEABLE");
}

static void on_sigbus(int number) /* from 6.12 the kernel forces the signal: ignoring it would be fatal */
{
	(void)number;
}

static void do_poison(size_t size) /* tells the kernel that these pages are broken; they are not touched again */
{
	char *at = map(size, 0);

	signal(SIGBUS, on_sigbus);
	hint(at, size, MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE");
	for (size_t off = 0; off < size; off += PAGE)
		fill_random((uint64_t *)(at + off));
	for (size_t off = 0; off < size; off += PAGE)
		hint(at + off, PAGE, MADV_HWPOISON, "MADV_HWPOISON");
}

static void do_stale(size_t size) /* left behind as free pages that are not zero */
{
	char *at = map(size, 0);

	for (size_t off = 0; off < size; off += PAGE)
		(off / PAGE % 2 ? fill_text : fill_pointers)((uint64_t *)(at + off));
}

static int open_tmpfs(const char *kind)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/dev/shm/%s.%d", kind, (int)getpid());
	fd = open(path, O_RDWR | O_CREAT, 0600);
	if (fd < 0)
		die(path);
	return fd;
}

static void do_tmpfs(size_t size)
{
	int fd = open_tmpfs("tmpfs");
	char *buffer = map(HUGE, 0);

	for (size_t off = 0; off < size; off += HUGE) {
		fill_mixed(buffer, HUGE);
		if (write(fd, buffer, HUGE) != (ssize_t)HUGE)
			die("write");
	}
}

static void do_blank(size_t size) /* pages in use that nobody has written: struct pages without disk space */
{
	if ((errno = posix_fallocate(open_tmpfs("blank"), 0, (off_t)size)) != 0)
		die("posix_fallocate");
}

static void do_files(size_t count) /* empty files: dentries and inodes, that is slab pages */
{
	char path[64];

	for (size_t i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "/dev/shm/%zu", i);
		if (mknod(path, S_IFREG | 0600, 0) != 0)
			die(path);
	}
}

static const struct kind {
	const char *name;
	void (*act)(size_t);
	int stays; /* held by a sleeping child */
} kinds[] = {
	{ "anon", do_anon, 1 }, { "thp", do_thp, 1 }, { "huge", do_huge, 1 }, { "ksm", do_ksm, 1 },
	{ "poison", do_poison, 1 }, { "stale", do_stale, 0 }, { "tmpfs", do_tmpfs, 0 }, { "blank", do_blank, 0 },
	{ "files", do_files, 0 },
};

static size_t parse_size(const char *word)
{
	char *end;
	size_t size = strtoull(word, &end, 0);

	return size << (*end == 'G' ? 30 : *end == 'M' ? 20 : *end == 'K' ? 10 : 0);
}

static int run(const struct kind *kind, size_t size)
{
	int pipes[2];
	char done = 0;
	pid_t child;

	if (pipe(pipes) != 0 || (child = fork()) < 0)
		die("fork");
	if (child == 0) {
		char name[16];

		snprintf(name, sizeof(name), "fill-%s", kind->name);
		prctl(PR_SET_NAME, name);
		close(pipes[0]);
		make_text();
		kind->act(size);
		if (write(pipes[1], "k", 1) != 1)
			die("pipe");
		close(pipes[1]);
		while (kind->stays)
			pause();
		exit(0);
	}
	close(pipes[1]);
	if (read(pipes[0], &done, 1) != 1 || done != 'k')
		return 1;
	if (!kind->stays)
		waitpid(child, NULL, 0);
	return 0;
}

int main(int argc, char **argv)
{
	for (size_t i = 0; argc == 3 && i < sizeof(kinds) / sizeof(*kinds); i++) {
		if (strcmp(argv[1], kinds[i].name) == 0)
			return run(&kinds[i], parse_size(argv[2]));
	}
	fprintf(stderr, "usage: fill KIND SIZE\n");
	return 2;
}
