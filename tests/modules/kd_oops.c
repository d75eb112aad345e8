// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Does something fatal, in init or (late=1) in exit.
 *
 * Expected, by the parameter `how`:
 *	0  reads through NULL		"BUG: kernel NULL pointer dereference, address: 0000000000000010"
 *	1  writes where nothing is	"BUG: unable to handle page fault for address: ffffdeadbeef0000"
 *	2  BUG()			"kernel BUG at kd_oops.c:NN!", invalid opcode
 *	3  WARN_ON(1)			"WARNING: ... at kd_oops.c:NN", then loads, prints "kd_oops: survived", taint W
 *	4  divides by zero		"divide error: 0000"
 *	5  calls NULL			"BUG: kernel NULL pointer dereference, address: 0000000000000000", RIP 0
 *	6  overflows the stack		"BUG: ... stack guard page was hit at ..." by way of a double fault
 *	7  reads 0x8000000000000000	"general protection fault, probably for non-canonical address 0x8000..."
 *	8  panic()			"Kernel panic - not syncing: kd_oops"
 *	9  writes to its own code	"BUG: unable to handle page fault", "supervisor write access" (read-only)
 * Anything else loads and does nothing. An oops in init leaves the task dead and the module in state "Loading".
 * kd_oops_outer -> kd_oops_inner are in the backtrace.
 */
#include <linux/bug.h>
#include <linux/compiler.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>

static int how;
module_param(how, int, 0444);
MODULE_PARM_DESC(how, "in which way, 0 to 9");
static bool late;
module_param(late, bool, 0444);
MODULE_PARM_DESC(late, "in exit, not in init");

/* The compiler must not see what these hold, or it would refuse, or know better. */
static volatile unsigned long zero;

static noinline int overflow(int depth)
{
	volatile char ballast[512];

	ballast[depth & 511] = (char)depth;
	/* Never true, but neither the compiler nor objtool can know. */
	if (zero)
		return depth;
	return overflow(depth + 1) + ballast[depth & 511];
}

static noinline void kd_oops_inner(void)
{
	volatile int *target = (volatile int *)(zero + 16);
	int divisor = (int)zero;
	void (*function)(void) = (void (*)(void))zero;

	switch (how) {
	case 0:
		pr_info("kd_oops: read %d\n", *target);
		break;
	case 1:
		target = (volatile int *)(zero + 0xffffdeadbeef0000UL);
		*target = 1;
		break;
	case 2:
		BUG();
	case 3:
		WARN_ON(!zero);
		pr_info("kd_oops: survived\n");
		break;
	case 4:
		pr_info("kd_oops: divided %d\n", how / divisor);
		break;
	case 5:
		function();
		break;
	case 6:
		pr_info("kd_oops: overflowed %d\n", overflow(1));
		break;
	case 7:
		target = (volatile int *)(zero + 0x8000000000000000UL);
		pr_info("kd_oops: read %d\n", *target);
		break;
	case 8:
		panic("kd_oops");
	case 9:
		target = (volatile int *)(zero + (unsigned long)kd_oops_inner);
		*target = 0;
		break;
	}
}

static noinline void kd_oops_outer(void)
{
	kd_oops_inner();
	/* Not a tail call, so that this function is in the backtrace. */
	barrier();
}

static int __init kd_oops_init(void)
{
	if (!late)
		kd_oops_outer();
	return 0;
}

static void __exit kd_oops_exit(void)
{
	if (late)
		kd_oops_outer();
}

module_init(kd_oops_init);
module_exit(kd_oops_exit);
MODULE_DESCRIPTION("Oopses");
MODULE_LICENSE("GPL");
