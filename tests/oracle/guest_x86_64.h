// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * guest.c on x86-64. The case arrives as a file of QEMU's fw_cfg device (docs/specs/fw_cfg.rst), the report leaves by
 * isa-debugcon, and isa-debug-exit ends it all. None of them has a driver in the kernel, which sees nothing of that.
 */

enum { READ = 0, WRITE = 1, CLOSE = 3, LSEEK = 8, MMAP = 9, MUNMAP = 11, NANOSLEEP = 35, GETPID = 39, CLONE = 56, EXIT = 60, WAIT4 = 61,
       SETRESUID = 117, SETRESGID = 119, MOUNT = 165, IOPERM = 173, GETDENTS64 = 217, OPENAT = 257,
       SYMLINKAT = 266, FINIT_MODULE = 313 };
enum { O_DIRECTORY = 0200000 };
enum { CONSOLE_PORT = 0x402, EXIT_PORT = 0x501, FW_CFG_SELECT = 0x510, FW_CFG_DATA = 0x511, FW_CFG_DIRECTORY = 0x19 };

static long syscall6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = f;
	long value;

	asm volatile("syscall" : "=a"(value) : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return value;
}

static void copy(void *to, const void *from, u64 size)
{
	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

static void put(const void *bytes, u64 size)
{
	asm volatile("rep outsb" : "+S"(bytes), "+c"(size) : "d"(CONSOLE_PORT) : "memory");
}

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

static void connect(void)
{
	syscall6(IOPERM, CONSOLE_PORT, FW_CFG_DATA + 1 - CONSOLE_PORT, 1, 0, 0, 0);
}

/* The file opt/kodojo/case, if it has content. */
static u8 *read_case(u64 *size, u8 *(*allocated)(u64 size))
{
	static const char name[] = "opt/kodojo/case";
	u8 entry[64];
	u8 *content;

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
		content = allocated(*size);
		fw_cfg_select(entry[4] << 8 | entry[5]);
		fw_cfg(content, *size);
		return content;
	}
	return 0;
}

static void turn_off(void)
{
	asm volatile("outb %b0, %w1" : : "a"(0), "d"(EXIT_PORT));
}

asm(".globl _start\n_start: mov %rsp, %rdi; call guest\n");
