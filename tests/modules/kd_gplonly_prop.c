// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Says that it is proprietary (it is not), and uses a symbol that only GPL modules may use. modpost would
 * refuse that, so kbuild.py changes the licence in the finished module.
 *
 * Expected: -ENOENT, "kd_gplonly_prop: Unknown symbol system_long_wq (err -2)" after the line about the
 * licence; the kernel is tainted P nevertheless.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/workqueue.h>

static int __init kd_gplonly_prop_init(void)
{
	pr_info("kd_gplonly_prop: %s\n", system_long_wq ? "loaded" : "too early");
	return 0;
}

static void __exit kd_gplonly_prop_exit(void)
{
}

module_init(kd_gplonly_prop_init);
module_exit(kd_gplonly_prop_exit);
MODULE_DESCRIPTION("Declares a proprietary licence and uses a GPL symbol");
MODULE_LICENSE("Dual BSD/GPL");
