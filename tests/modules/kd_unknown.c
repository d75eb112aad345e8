// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Refers to a symbol that exists nowhere; modpost is told (KBUILD_MODPOST_WARN) to let it pass.
 *
 * Expected: -ENOENT, "kd_unknown: Unknown symbol kd_exists_nowhere (err -2)".
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>

int kd_exists_nowhere(int x);

static int __init kd_unknown_init(void)
{
	return kd_exists_nowhere(1);
}

static void __exit kd_unknown_exit(void)
{
}

module_init(kd_unknown_init);
module_exit(kd_unknown_exit);
MODULE_DESCRIPTION("Needs a symbol that exists nowhere");
MODULE_LICENSE("GPL");
