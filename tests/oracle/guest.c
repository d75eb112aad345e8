// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * PID 1 of the machine that QEMU runs: makes the system calls of one case and reports what came of them.
 *
 * The case arrives as a file of QEMU's fw_cfg device (docs/specs/fw_cfg.rst), because the machine is saved while
 * this program waits for one, and each copy of it is given another. The report leaves by isa-debugcon. Neither
 * device has a driver in the kernel, which sees nothing of all that. tests/oracle/cases.py writes cases and
 * tests/oracle/qemu.py reads reports; what both consist of is explained there.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

enum { CONSOLE_PORT = 0x402, EXIT_PORT = 0x501, FW_CFG_SELECT = 0x510, FW_CFG_DATA = 0x511, FW_CFG_DIRECTORY = 0x19 };
enum { READ = 0, WRITE = 1, OPEN = 2, CLOSE = 3, LSEEK = 8, MMAP = 9, MUNMAP = 11, NANOSLEEP = 35, FORK = 57, EXIT = 60,
       WAIT4 = 61, MOUNT = 165, IOPERM = 173, GETDENTS64 = 217, SETRESUID = 117, SETRESGID = 119 };
enum { O_RDONLY = 0, O_WRONLY_CREAT_TRUNC = 01101, O_NONBLOCK = 04000, O_DIRECTORY = 0200000, SEEK_END = 2, WNOHANG = 1 };
enum { PROT_READ_WRITE = 3, MAP_PRIVATE_ANONYMOUS_POPULATE = 0x8022, MAP_SHARED_ANONYMOUS = 0x21, PAGE = 4096 };
enum { DT_DIRECTORY = 4, DT_FILE = 8 };
enum { DATA = 1, CALL = 2, UNPRIVILEGED = 3 };		/* records of a case; the last one is about the next call */
enum { VALUE, ADDRESS, DESCRIPTOR, PATH };		/* kinds of arguments */
enum { SOMEBODY = 1000, MILLISECOND = 1000000 };
enum { PATIENCE = 3000 };				/* times 10 ms that a call may take */
enum { MOST_DATA = 64 };				/* cases.py sees to it */

struct argument { u32 kind, data; u64 value; };
struct call { u32 number, settle; struct argument arguments[3]; };
struct data { u32 size; const u8 *bytes; };

static struct data datas[MOST_DATA];
static u8 buffer[1 << 20];
static int kmsg;

static long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = f;
	long value;

	asm volatile("syscall" : "=a"(value) : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return value;
}

#define syscall3(number, a, b, c) syscall6(number, (long)(a), (long)(b), (long)(c), 0, 0, 0)

static void *allocate(u64 size, long flags)
{
	return (void *)syscall6(MMAP, 0, size, PROT_READ_WRITE, flags, -1, 0);
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

static void copy(void *to, const void *from, u64 size)
{
	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

/* -- the report: a letter, the size of what follows, and that --------------------------------------------------- */

static void put(const void *bytes, u64 size)
{
	asm volatile("rep outsb" : "+S"(bytes), "+c"(size) : "d"(CONSOLE_PORT) : "memory");
}

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

static void fw_cfg(void *to, u64 size)
{
	asm volatile("rep insb" : "+D"(to), "+c"(size) : "d"(FW_CFG_DATA) : "memory");
}

static void fw_cfg_select(u16 item)
{
	asm volatile("outw %0, %1" : : "a"(item), "d"((u16)FW_CFG_SELECT));
}

static u32 big_endian(const u8 *bytes)
{
	return bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
}

/* The file opt/kodojo/case, once it has content. Waiting in sleep would let guest time run away. */
static const u8 *wait_for_case(u64 *size)
{
	static const char name[] = "opt/kodojo/case";
	u8 entry[64];
	u8 *content;

	for (;;) {
		fw_cfg_select(FW_CFG_DIRECTORY);
		fw_cfg(entry, 4);
		for (u32 left = big_endian(entry); left; left--) {
			u32 same = 0;

			fw_cfg(entry, sizeof(entry));
			while (same < sizeof(name) && entry[8 + same] == (u8)name[same])
				same++;
			*size = big_endian(entry);
			if (same < sizeof(name) || *size <= 1)
				continue;
			content = allocate(*size, MAP_PRIVATE_ANONYMOUS_POPULATE);
			fw_cfg_select(entry[4] << 8 | entry[5]);
			fw_cfg(content, *size);
			return content;
		}
	}
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
	int file = syscall3(OPEN, path, O_WRONLY_CREAT_TRUNC, 0644);

	for (u32 done = 0; done < data->size;)
		done += syscall3(WRITE, file, data->bytes + done, data->size - done);
	syscall3(CLOSE, file, 0, 0);
	return syscall3(OPEN, path, flags, 0);
}

static u64 value_of(const struct argument *argument)
{
	switch (argument->kind) {
	case ADDRESS:
		return in_memory(&datas[argument->data]) + argument->value;
	case DESCRIPTOR:
		return in_file(&datas[argument->data], argument->value);
	case PATH:
		return syscall3(OPEN, datas[argument->data].bytes, argument->value, 0);
	}
	return argument->value;
}

/* Make a call in a child, since it may not survive; whether it returned. */
static int make(const struct call *call, int privileged)
{
	long *value = allocate(PAGE, MAP_SHARED_ANONYMOUS);
	long values[3];
	int child, status = 0, patience = PATIENCE;

	child = syscall3(FORK, 0, 0, 0);
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
	int file = syscall3(OPEN, path, O_RDONLY, 0);
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
	int directory = syscall3(OPEN, path, O_DIRECTORY, 0);
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
	syscall3(IOPERM, CONSOLE_PORT, FW_CFG_DATA + 1 - CONSOLE_PORT, 1);
	kmsg = syscall3(OPEN, "/dev/kmsg", O_RDONLY | O_NONBLOCK, 0);
	pause_for(2000);
	report_content("/proc/cpuinfo");
	report_content("/proc/version");
	report('R', "", 0);
	content = wait_for_case(&size);
	run(content, size);
	asm volatile("outb %b0, %w1" : : "a"(0), "d"(EXIT_PORT));
}

asm(".globl _start\n_start: call guest\n");
