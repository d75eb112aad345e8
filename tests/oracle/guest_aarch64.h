// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * guest.c on arm64. The case arrives, and the report leaves, by semihosting: an instruction that asks QEMU to read or
 * write a file of the host (Arm's "Semihosting for AArch32 and AArch64"). The kernel never sees it.
 */

enum { SYMLINKAT = 36, MOUNT = 40, OPENAT = 56, CLOSE = 57, GETDENTS64 = 61, LSEEK = 62, READ = 63, WRITE = 64, EXIT = 93, NANOSLEEP = 101,
       SETRESUID = 147, SETRESGID = 149, GETPID = 172, MUNMAP = 215, CLONE = 220, MMAP = 222, WAIT4 = 260, FINIT_MODULE = 273 };
enum { O_DIRECTORY = 040000 };
enum { SYS_OPEN = 0x01, SYS_CLOSE = 0x02, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_FLEN = 0x0c, SYS_EXIT = 0x18 };
enum { READ_BINARY = 1, APPEND_BINARY = 9, APPLICATION_EXIT = 0x20026 };

static long report_file_handle;

static long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
	register long x8 asm("x8") = number, x0 asm("x0") = a, x1 asm("x1") = b, x2 asm("x2") = c;
	register long x3 asm("x3") = d, x4 asm("x4") = e, x5 asm("x5") = f;

	asm volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}

/* QEMU follows the page tables; what is not in memory yet is nowhere for it. */
static void fetch(const void *bytes, u64 size)
{
	for (u64 at = (u64)bytes & -4096ul; at < (u64)bytes + size; at += 4096)
		(void)*(const volatile u8 *)(at < (u64)bytes ? (u64)bytes : at);
}

static long ask_host(long operation, u64 first, u64 second, u64 third)
{
	u64 block[3] = { first, second, third };
	register long x0 asm("x0") = operation;
	register u64 *x1 asm("x1") = block;

	asm volatile("hlt #0xf000" : "+r"(x0) : "r"(x1) : "memory");
	return x0;
}

static void copy(void *to, const void *from, u64 size)
{
	for (u64 i = 0; i < size; i++)
		((u8 *)to)[i] = ((const u8 *)from)[i];
}

static void put(const void *bytes, u64 size)
{
	fetch(bytes, size);
	ask_host(SYS_WRITE, report_file_handle, (u64)bytes, size);
}

static void connect(void)
{
	static const char name[] = "report";

	fetch(name, sizeof(name));
	report_file_handle = ask_host(SYS_OPEN, (u64)name, APPEND_BINARY, sizeof(name) - 1);
}

/* The file "case", if it has content. */
static u8 *read_case(u64 *size, u8 *(*allocated)(u64 size))
{
	static const char name[] = "case";
	u8 *content = 0;
	long file, length;

	fetch(name, sizeof(name));
	file = ask_host(SYS_OPEN, (u64)name, READ_BINARY, sizeof(name) - 1);
	if (file < 0)
		return 0;
	length = ask_host(SYS_FLEN, file, 0, 0);	/* -1, if the machine was saved while this file was open */
	if (length > 1) {
		*size = length;
		content = allocated(*size);
		ask_host(SYS_READ, file, (u64)content, *size);
	}
	ask_host(SYS_CLOSE, file, 0, 0);
	if (content)
		connect();	/* what was open before the machine was saved is open no longer */
	return content;
}

static void turn_off(void)
{
	ask_host(SYS_EXIT, APPLICATION_EXIT, 0, 0);
}

asm(".globl _start\n_start: mov x0, sp; bl guest\n");
