// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Exports a function to kd_whole, and answers to the alias "kd-family-part", by which kd_request can ask for it.
 *
 * Expected: loads; prints "kd_part: bias=N". `bias` (1) is added to what kd_part_sum() is called with.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>

#include "kd_part.h"

static int bias = 1;
module_param(bias, int, 0444);
MODULE_PARM_DESC(bias, "what is added");

int kd_part_sum(int value)
{
	return value + bias;
}
EXPORT_SYMBOL_GPL(kd_part_sum);

static int __init kd_part_init(void)
{
	pr_info("kd_part: bias=%d\n", bias);
	return 0;
}

static void __exit kd_part_exit(void)
{
}

module_init(kd_part_init);
module_exit(kd_part_exit);
MODULE_ALIAS("kd-family-part");
MODULE_DESCRIPTION("A part of kd_whole");
MODULE_LICENSE("GPL");
