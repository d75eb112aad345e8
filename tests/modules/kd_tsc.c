// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Reads the processor's clock in init: the time-stamp counter by RDTSC, on arm64 the virtual counter (CNTVCT_EL0).
 *
 * Expected: loads; three lines "kd_tsc reads N", none smaller than the one before.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#ifdef CONFIG_ARM64
#include <asm/sysreg.h>
#define rdtsc() read_sysreg(cntvct_el0)
#else
#include <asm/msr.h>
#endif

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
