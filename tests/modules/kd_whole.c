// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Needs kd_part, which lies beside it, and crc-itu-t, which the kernel's tree has: what a driver from outside the tree
 * is like.
 *
 * Expected: -ENOENT without them. With both: loads, prints "kd_whole: sum=N crc=XXXX", where N is 41 and kd_part's
 * bias, and XXXX the CRC (ITU-T V.41) of "123456789": 31c3.
 */
#include <linux/crc-itu-t.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>

#include "kd_part.h"

static int __init kd_whole_init(void)
{
	pr_info("kd_whole: sum=%d crc=%04x\n", kd_part_sum(41), crc_itu_t(0, "123456789", 9));
	return 0;
}

static void __exit kd_whole_exit(void)
{
}

module_init(kd_whole_init);
module_exit(kd_whole_exit);
MODULE_DESCRIPTION("Needs a module beside it and one of the kernel's tree");
MODULE_LICENSE("GPL");
