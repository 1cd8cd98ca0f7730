/*
 * A file against a model of it in memory, after fsx: reads, writes, truncations, holes and mapped accesses at random places.
 *
 *     folders FILE SEED STEPS
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST = 256 << 10 };

static unsigned char model[MOST], bytes[MOST];
static size_t size;
static unsigned long long state;
static int file;
static const char *path;

static size_t below(size_t limit)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return limit ? (state >> 33) % limit : 0;
}

static void must(int good, const char *what, long step)
{
	if (!good) {
		fprintf(stderr, "step %ld: %s: %m\n", step, what);
		exit(1);
	}
}

static void same(const unsigned char *found, size_t at, size_t length, const char *what, long step)
{
	for (size_t i = 0; i < length; i++)
		if (found[i] != model[at + i]) {
			fprintf(stderr, "step %ld: %s: byte %zu of %zu is %#x, not %#x\n", step, what, at + i, size,
				found[i], model[at + i]);
			exit(1);
		}
}

static void fill(size_t at, size_t length)
{
	for (size_t i = 0; i < length; i++)
		model[at + i] = below(256);
}

static void reopen(long step)
{
	must(!close(file), "close", step);
	file = open(path, O_RDWR);
	must(file >= 0, "open", step);
}

static void mapped(size_t at, size_t length, int writes, long step)
{
	if (!length)
		return;
	unsigned char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	must(map != MAP_FAILED, "mmap", step);
	if (writes) {
		fill(at, length);
		memcpy(map + at, model + at, length);
		must(!msync(map, size, MS_SYNC), "msync", step);
	} else
		same(map + at, at, length, "mapped", step);
	must(!munmap(map, size), "munmap", step);
}

static void one(long step)
{
	size_t at = below(size + 1), length = below(size - at + 1);
	switch (below(9)) {
	case 0:
	case 1:
		at = below(MOST);
		length = below(MOST - at) % (64 << 10);
		fill(at, length);
		must(pwrite(file, model + at, length, at) == (ssize_t)length, "write", step);
		if (length && at + length > size)
			size = at + length;
		break;
	case 2:
	case 3:
		must(pread(file, bytes, length, at) == (ssize_t)length, "read", step);
		same(bytes, at, length, "read", step);
		break;
	case 4:
		length = below(MOST);
		must(!ftruncate(file, length), "truncate", step);
		if (length < size)
			memset(model + length, 0, size - length);
		size = length;
		break;
	case 5:
		mapped(at, length, 0, step);
		break;
	case 6:
		mapped(at, length, 1, step);
		break;
	case 7:
		if (length)
			must(!fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, length), "hole", step);
		memset(model + at, 0, length);
		break;
	case 8:
		must(!fsync(file), "fsync", step);
		reopen(step);
		break;
	}
}

int main(int argc, char **argv)
{
	if (argc != 4)
		return 2;
	path = argv[1];
	state = strtoull(argv[2], NULL, 0);
	long steps = atol(argv[3]);
	file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	must(file >= 0, "create", 0);
	for (long step = 1; step <= steps; step++)
		one(step);
	reopen(steps);
	struct stat found;
	must(!fstat(file, &found) && (size_t)found.st_size == size, "size", steps);
	must(pread(file, bytes, MOST, 0) == (ssize_t)size, "all", steps);
	same(bytes, 0, size, "all", steps);
	printf("%ld steps, %zu bytes\n", steps, size);
	return 0;
}
