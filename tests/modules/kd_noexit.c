// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * An init but no exit.
 *
 * Expected: loads, prints "kd_noexit: here to stay"; [permanent] in /proc/modules; removal gives -EBUSY. (It has
 * no code but init's; so 6.12, where each kind of memory is allocated by itself, gives its address there as 0.)
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>

static int __init kd_noexit_init(void)
{
	pr_info("kd_noexit: here to stay\n");
	return 0;
}

module_init(kd_noexit_init);
MODULE_DESCRIPTION("Cannot be removed");
MODULE_LICENSE("GPL");
