// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Exports a function to all, one and a variable to GPL modules, and one in the namespace KD.
 *
 * Expected: loads; while kd_import is loaded its reference count is 1, lsmod says "kd_import" behind it and
 * removal gives -EWOULDBLOCK (-EAGAIN); /sys/module/kd_export/holders/kd_import exists.
 */
#include <linux/init.h>
#include <linux/module.h>

#include "kd_export.h"

int kd_export_number = 1000;
EXPORT_SYMBOL_GPL(kd_export_number);

int kd_export_plain(int x)
{
	return x + 1;
}
EXPORT_SYMBOL(kd_export_plain);

int kd_export_gpl(int x)
{
	return x + 20;
}
EXPORT_SYMBOL_GPL(kd_export_gpl);

int kd_export_in_namespace(int x)
{
	return x + 300;
}
EXPORT_SYMBOL_NS_GPL(kd_export_in_namespace, KD);

static int __init kd_export_init(void)
{
	return 0;
}

static void __exit kd_export_exit(void)
{
}

module_init(kd_export_init);
module_exit(kd_export_exit);
MODULE_DESCRIPTION("Exports: plain, GPL, in a namespace, a variable");
MODULE_LICENSE("GPL");
