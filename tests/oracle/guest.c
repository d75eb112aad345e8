// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PID 1 of the machine that QEMU runs: makes the system calls of one case and reports what came of them.
 *
 * The machine is saved while this program waits for a case, and each copy of it is given another. How the case
 * arrives and the report leaves is in guest_ARCHITECTURE.h; the kernel sees nothing of it. If the case has a modprobe,
 * that is this program, too. tests/oracle/cases.py
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
/* Records of a case. UNPRIVILEGED is about the next call; EARLIER ones are made by the process that makes it. */
enum { DATA = 1, CALL = 2, UNPRIVILEGED = 3, EARLIER = 4, MODPROBE = 5, NEW_FILE = 6 };
enum { VALUE, ADDRESS, DESCRIPTOR, PATH, RESULT, POINTING };	/* kinds of arguments */
enum { SOMEBODY = 1000, MILLISECOND = 1000000 };
enum { PATIENCE = 3000 };				/* times 10 ms that a call may take */
enum { MOST_DATA = 256, MOST_EARLIER = 4096 };		/* cases.py sees to it */
enum { ENOTDIR = 20, EEXIST = 17 };

#if defined(__x86_64__)
#include "guest_x86_64.h"
#elif defined(__aarch64__)
#include "guest_aarch64.h"
#endif

struct argument { u32 kind, data; u64 value; };
struct call { u32 number, settle; struct argument arguments[3]; };
struct earlier { u32 number, settle; struct argument arguments[6]; };
struct data { u32 size; const u8 *bytes; };

static struct data datas[MOST_DATA];
static u64 places[MOST_DATA];				/* where they are in the memory of the process that makes calls */
static const struct earlier *earlier[MOST_EARLIER];
static u32 earlier_count;
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
static u64 in_memory(u32 index)
{
	const struct data *data = &datas[index];
	u64 size = ((data->size ? data->size : 1) + PAGE - 1) & -(u64)PAGE;
	u8 *place;

	if (places[index])
		return places[index];
	place = allocate(size + PAGE, MAP_PRIVATE_ANONYMOUS_POPULATE);
	syscall3(MUNMAP, place + size, PAGE, 0);
	copy(place, data->bytes, data->size);
	return places[index] = (u64)place;
}

static u64 pointing(u32 index, u32 target)
{
	u64 place = in_memory(index), address = in_memory(target);

	copy((u8 *)place + datas[index].size - sizeof(address), &address, sizeof(address));
	return place;
}

static void write_file(const char *path, const struct data *data)
{
	int file = open_file(path, O_WRONLY_CREAT_TRUNC, 0644);

	for (u32 done = 0; done < data->size;)
		done += syscall3(WRITE, file, data->bytes + done, data->size - done);
	syscall3(CLOSE, file, 0, 0);
}

static u64 in_file(const struct data *data, int flags)
{
	static const char path[] = "/tmp/module.ko";

	write_file(path, data);
	return open_file(path, flags, 0);
}

static u64 value_of(const struct argument *argument, const long *results)
{
	switch (argument->kind) {
	case ADDRESS:
		return in_memory(argument->data) + argument->value;
	case DESCRIPTOR:
		return in_file(&datas[argument->data], argument->value);
	case PATH:
		return open_file((const char *)datas[argument->data].bytes, argument->value, 0);
	case RESULT:
		return results[argument->value];
	case POINTING:
		return pointing(argument->data, argument->value);
	}
	return argument->value;
}

/* Be the process that makes the calls; their results, the last one's behind the earlier ones'. */
static void make_all(const struct call *call, int privileged, long *results)
{
	u64 values[6];

	for (u32 i = 0; i < earlier_count; i++) {
		for (int j = 0; j < 6; j++)
			values[j] = value_of(&earlier[i]->arguments[j], results);
		results[i] = syscall6(earlier[i]->number, values[0], values[1], values[2], values[3], values[4], values[5]);
	}
	for (int j = 0; j < 3; j++)
		values[j] = value_of(&call->arguments[j], results);
	if (!privileged) {
		syscall3(SETRESGID, SOMEBODY, SOMEBODY, SOMEBODY);
		syscall3(SETRESUID, SOMEBODY, SOMEBODY, SOMEBODY);
	}
	results[earlier_count] = syscall3(call->number, values[0], values[1], values[2]);
}

/* Make a call in a child, since it may not survive; whether it returned. */
static int make(const struct call *call, int privileged)
{
	u64 size = (earlier_count + 1) * sizeof(long);
	long *results = allocate(size, MAP_SHARED_ANONYMOUS);
	int child, status = 0, patience = PATIENCE;

	child = syscall3(CLONE, SIGCHLD, 0, 0);
	if (!child) {
		make_all(call, privileged, results);
		syscall3(EXIT, 0, 0, 0);
	}
	while (syscall6(WAIT4, child, (long)&status, WNOHANG, 0, 0, 0) == 0) {
		if (!patience--) {
			report('H', "", 0);
			return 0;
		}
		pause_for(10);
	}
	if (status) {
		report('K', &status, sizeof(status));
	} else {
		for (u32 i = 0; i < earlier_count; i++)
			report('W', &results[i], sizeof(*results));
		report('V', &results[earlier_count], sizeof(*results));
	}
	syscall3(MUNMAP, results, size, 0);
	return !status;
}

/* -- modprobe ---------------------------------------------------------------------------------------------------- */

static void install_modprobe(void)
{
	syscall3(SYMLINKAT, "/init", AT_FDCWD, "/sbin/modprobe");
}

/* This program, as the kernel starts it: load /tmp/NAME.0 and so on, until there is none; the exit status. */
static int modprobe(const char *name)
{
	char path[] = "/tmp/", text[256];
	u32 end = sizeof(path) - 1, size = length(name);
	int file, status = 0;

	if (end + size + 3 > sizeof(text))
		return 1;
	copy(text, path, end);
	copy(text + end, name, size);
	copy(text + end + size, ".0", 3);
	for (char *number = text + end + size + 1; (file = open_file(text, O_RDONLY, 0)) >= 0; ++*number) {
		long value = syscall3(FINIT_MODULE, file, "", 0);

		if (value && value != -EEXIST)
			status = 1;
		syscall3(CLOSE, file, 0, 0);
	}
	return text[end + size + 1] == '0' ? 1 : status;
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

	if (directory == -ENOTDIR)
		report_content(path);
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
	u32 count = 0, index, record[2];
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
		if (record[0] == EARLIER) {
			earlier[earlier_count++] = (const struct earlier *)at;
			continue;
		}
		if (record[0] == MODPROBE) {
			install_modprobe();
			continue;
		}
		if (record[0] == NEW_FILE) {
			copy(&index, at, sizeof(index));
			write_file((const char *)at + sizeof(index), &datas[index]);
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
		earlier_count = 0;
	}
}

void guest(long *stack)
{
	const char **arguments = (const char **)(stack + 1);	/* behind their number */
	const u8 *content;
	u64 size;

	if (syscall3(GETPID, 0, 0, 0) != 1)
		syscall3(EXIT, stack[0] == 4 ? modprobe(arguments[3]) : 1, 0, 0);	/* modprobe -q -- NAME */
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
