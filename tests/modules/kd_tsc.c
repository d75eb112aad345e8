// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reads the time-stamp counter in init, with RDTSC and (where the processor is said to have it) RDTSCP.
 *
 * Expected: loads; three lines "kd_tsc reads N", none smaller than the one before.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <asm/msr.h>

static int __init kd_tsc_init(void)
{
	int i;

	for (i = 0; i < 3; i++)
		pr_info("kd_tsc reads %llu\n", rdtsc());
	return 0;
}

static void __exit kd_tsc_exit(void)
{
}

module_init(kd_tsc_init);
module_exit(kd_tsc_exit);
MODULE_DESCRIPTION("Reads the time-stamp counter");
MODULE_LICENSE("GPL");
