// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Says that it is proprietary (it is not), and uses nothing but plain exports.
 *
 * Expected: loads; "kd_proprietary: module license 'Proprietary' taints kernel." and "Disabling lock
 * debugging due to kernel taint"; P in the module's taint and in the kernel's.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>

static int __init kd_proprietary_init(void)
{
	pr_info("kd_proprietary: loaded\n");
	return 0;
}

static void __exit kd_proprietary_exit(void)
{
}

module_init(kd_proprietary_init);
module_exit(kd_proprietary_exit);
MODULE_DESCRIPTION("Declares a proprietary licence");
MODULE_LICENSE("Proprietary");
