// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * An init that returns a positive number.
 *
 * Expected: loads all the same (the system call returns 0), with "do_init_module: 'kd_positive'->init
 * suspiciously returned 5, it should follow 0/-E convention" and a stack dump in the log.
 */
#include <linux/init.h>
#include <linux/module.h>

static int __init kd_positive_init(void)
{
	return 5;
}

static void __exit kd_positive_exit(void)
{
}

module_init(kd_positive_init);
module_exit(kd_positive_exit);
MODULE_DESCRIPTION("Returns 5 from init");
MODULE_LICENSE("GPL");
