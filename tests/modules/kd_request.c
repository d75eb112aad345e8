// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Asks user space for another module from its init.
 *
 * Expected: loads; prints "kd_request: request_module=N". N is what modprobe's run ended with: 0 if it
 * succeeded, a positive exit status << 8 (256 for a module that modprobe does not find), -ENOENT (-2) if
 * there is no modprobe. `name` (kd-nothing) says which module is asked for; the empty string: none.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/kmod.h>
#include <linux/module.h>

static char *name = "kd-nothing";
module_param(name, charp, 0444);
MODULE_PARM_DESC(name, "the module that is asked for");

static int __init kd_request_init(void)
{
	if (*name)
		pr_info("kd_request: request_module=%d\n", request_module("%s", name));
	return 0;
}

static void __exit kd_request_exit(void)
{
}

module_init(kd_request_init);
module_exit(kd_request_exit);
MODULE_DESCRIPTION("Requests a module");
MODULE_LICENSE("GPL");
