// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PID 1 of the machine that QEMU runs: makes the system calls of one case and reports what came of them.
 *
 * The machine is saved while this program waits for a case, and each copy of it is given another. How the case
 * arrives and the report leaves is in guest_ARCHITECTURE.h; the kernel sees nothing of it. tests/oracle/cases.py
 * writes cases and tests/oracle/qemu.py reads reports; what both consist of is explained there.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

enum { O_RDONLY = 0, O_WRONLY_CREAT_TRUNC = 01101, O_NONBLOCK = 04000, AT_FDCWD = -100 };
enum { SEEK_END = 2, WNOHANG = 1, SIGCHLD = 17 };
enum { PROT_READ_WRITE = 3, MAP_PRIVATE_ANONYMOUS_POPULATE = 0x8022, MAP_SHARED_ANONYMOUS = 0x21, PAGE = 4096 };
enum { DT_DIRECTORY = 4, DT_FILE = 8 };
enum { DATA = 1, CALL = 2, UNPRIVILEGED = 3 };		/* records of a case; the last one is about the next call */
enum { VALUE, ADDRESS, DESCRIPTOR, PATH };		/* kinds of arguments */
enum { SOMEBODY = 1000, MILLISECOND = 1000000 };
enum { PATIENCE = 3000 };				/* times 10 ms that a call may take */
enum { MOST_DATA = 64 };				/* cases.py sees to it */

#if defined(__x86_64__)
#include "guest_x86_64.h"
#elif defined(__aarch64__)
#include "guest_aarch64.h"
#endif

struct argument { u32 kind, data; u64 value; };
struct call { u32 number, settle; struct argument arguments[3]; };
struct data { u32 size; const u8 *bytes; };

static struct data datas[MOST_DATA];
static u8 buffer[1 << 20];
static int kmsg;

#define syscall3(number, a, b, c) syscall6(number, (long)(a), (long)(b), (long)(c), 0, 0, 0)

static void *allocate(u64 size, long flags)
{
	return (void *)syscall6(MMAP, 0, size, PROT_READ_WRITE, flags, -1, 0);
}

static long open_file(const char *path, int flags, int mode)
{
	return syscall6(OPENAT, AT_FDCWD, (long)path, flags, mode, 0, 0);
}

static void pause_for(long milliseconds)
{
	long time[2] = { milliseconds / 1000, milliseconds % 1000 * MILLISECOND };

	syscall3(NANOSLEEP, time, 0, 0);
}

static u32 length(const char *text)
{
	u32 size = 0;

	while (text[size])
		size++;
	return size;
}

/* -- the report: a letter, the size of what follows, and that --------------------------------------------------- */

static void head(char what, u32 size)
{
	put(&what, 1);
	put(&size, 4);
}

static void report(char what, const void *bytes, u32 size)
{
	head(what, size);
	put(bytes, size);
}

static void report_file(char what, const char *path, const void *bytes, u32 size)
{
	head(what, length(path) + 1 + size);
	put(path, length(path) + 1);
	put(bytes, size);
}

/* -- the case ---------------------------------------------------------------------------------------------------- */

static u8 *allocated_privately(u64 size)
{
	return allocate(size, MAP_PRIVATE_ANONYMOUS_POPULATE);
}

/* Waiting in sleep would let guest time run away. */
static const u8 *wait_for_case(u64 *size)
{
	const u8 *content;

	do {
		content = read_case(size, allocated_privately);
	} while (!content);
	return content;
}

/* -- calls ------------------------------------------------------------------------------------------------------- */

/* A copy of a datum with an unmapped page behind the one it ends in. */
static u64 in_memory(const struct data *data)
{
	u64 size = ((data->size ? data->size : 1) + PAGE - 1) & -(u64)PAGE;
	u8 *place = allocate(size + PAGE, MAP_PRIVATE_ANONYMOUS_POPULATE);

	syscall3(MUNMAP, place + size, PAGE, 0);
	copy(place, data->bytes, data->size);
	return (u64)place;
}

static u64 in_file(const struct data *data, int flags)
{
	static const char path[] = "/tmp/module.ko";
	int file = open_file(path, O_WRONLY_CREAT_TRUNC, 0644);

	for (u32 done = 0; done < data->size;)
		done += syscall3(WRITE, file, data->bytes + done, data->size - done);
	syscall3(CLOSE, file, 0, 0);
	return open_file(path, flags, 0);
}

static u64 value_of(const struct argument *argument)
{
	switch (argument->kind) {
	case ADDRESS:
		return in_memory(&datas[argument->data]) + argument->value;
	case DESCRIPTOR:
		return in_file(&datas[argument->data], argument->value);
	case PATH:
		return open_file((const char *)datas[argument->data].bytes, argument->value, 0);
	}
	return argument->value;
}

/* Make a call in a child, since it may not survive; whether it returned. */
static int make(const struct call *call, int privileged)
{
	long *value = allocate(PAGE, MAP_SHARED_ANONYMOUS);
	long values[3];
	int child, status = 0, patience = PATIENCE;

	child = syscall3(CLONE, SIGCHLD, 0, 0);
	if (!child) {
		for (int i = 0; i < 3; i++)
			values[i] = value_of(&call->arguments[i]);
		if (!privileged) {
			syscall3(SETRESGID, SOMEBODY, SOMEBODY, SOMEBODY);
			syscall3(SETRESUID, SOMEBODY, SOMEBODY, SOMEBODY);
		}
		*value = syscall3(call->number, values[0], values[1], values[2]);
		syscall3(EXIT, 0, 0, 0);
	}
	while (syscall6(WAIT4, child, (long)&status, WNOHANG, 0, 0, 0) == 0) {
		if (!patience--) {
			report('H', "", 0);
			return 0;
		}
		pause_for(10);
	}
	if (status)
		report('K', &status, sizeof(status));
	else
		report('V', value, sizeof(*value));
	syscall3(MUNMAP, value, PAGE, 0);
	return !status;
}

/* -- looking ----------------------------------------------------------------------------------------------------- */

static void report_log(void)
{
	long size;

	for (;;) {
		size = syscall3(READ, kmsg, buffer, sizeof(buffer));
		if (size > 0)
			report('L', buffer, size);
		else if (size == -11)	/* EAGAIN: that was all */
			return;
		else
			report('P', &size, sizeof(size));	/* EPIPE: some are lost */
	}
}

static void report_content(const char *path)
{
	int file = open_file(path, O_RDONLY, 0);
	u32 done = 0;
	long size = file;

	while (file >= 0 && done < sizeof(buffer)) {
		size = syscall3(READ, file, buffer + done, sizeof(buffer) - done);
		if (size <= 0)
			break;
		done += size;
	}
	if (size < 0)
		report_file('N', path, &size, sizeof(size));
	else
		report_file('F', path, buffer, done);
	if (file >= 0)
		syscall3(CLOSE, file, 0, 0);
}

static void report_directory(const char *path)
{
	u8 entries[8192];
	int directory = open_file(path, O_DIRECTORY, 0);
	long size;

	if (directory < 0)
		return;
	while ((size = syscall3(GETDENTS64, directory, entries, sizeof(entries))) > 0) {
		for (u8 *entry = entries; entry < entries + size; entry += *(u16 *)(entry + 16)) {
			const char *name = (char *)entry + 19;
			char below[512];
			u32 end = length(path);

			if (name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])))
				continue;
			copy(below, path, end);
			below[end] = '/';
			copy(below + end + 1, name, length(name) + 1);
			if (entry[18] == DT_DIRECTORY) {
				report_file('D', below, "", 0);
				report_directory(below);
			} else if (entry[18] == DT_FILE) {
				report_content(below);
			} else {
				report_file('O', below, &entry[18], 1);
			}
		}
	}
	syscall3(CLOSE, directory, 0, 0);
}

/* -- all of it --------------------------------------------------------------------------------------------------- */

static void mount(const char *kind, const char *where)
{
	syscall6(MOUNT, (long)kind, (long)where, (long)kind, 0, 0, 0);
}

static void run(const u8 *content, u64 size)
{
	u32 count = 0, record[2];
	int privileged = 1;

	for (const u8 *at = content; at < content + size; at += record[1]) {
		const struct call *call = (const struct call *)(at + sizeof(record));

		copy(record, at, sizeof(record));
		at += sizeof(record);
		if (record[0] == DATA) {
			datas[count++] = (struct data){ record[1], at };
			continue;
		}
		if (record[0] == UNPRIVILEGED) {
			privileged = 0;
			continue;
		}
		syscall3(LSEEK, kmsg, 0, SEEK_END);
		if (make(call, privileged)) {
			pause_for(call->settle);
			report_log();
			report_content("/proc/sys/kernel/tainted");
			report_content("/proc/modules");
			for (const char *name = (char *)(call + 1); name < (char *)at + record[1]; name += length(name) + 1)
				report_directory(name);
		} else {
			report_log();
			at = content + size - record[1];	/* nothing more is to be had from this machine */
		}
		report('E', "", 0);
		privileged = 1;
	}
}

void guest(void)
{
	const u8 *content;
	u64 size;

	mount("proc", "/proc");
	mount("sysfs", "/sys");
	mount("devtmpfs", "/dev");
	mount("debugfs", "/sys/kernel/debug");
	mount("tracefs", "/sys/kernel/tracing");
	mount("securityfs", "/sys/kernel/security");
	connect();
	kmsg = open_file("/dev/kmsg", O_RDONLY | O_NONBLOCK, 0);
	pause_for(2000);
	report_content("/proc/cpuinfo");
	report_content("/proc/version");
	report('R', "", 0);
	content = wait_for_case(&size);
	run(content, size);
	turn_off();
}
