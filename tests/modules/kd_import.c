// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Uses everything that kd_export exports.
 *
 * Expected: -ENOENT without kd_export ("Unknown symbol ... (err -2)", one line each). With it: loads, prints
 * "kd_import: plain=2 gpl=21 namespace=301 number=1000", depends on kd_export.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>

#include "kd_export.h"

static int __init kd_import_init(void)
{
	pr_info("kd_import: plain=%d gpl=%d namespace=%d number=%d\n", kd_export_plain(1), kd_export_gpl(1),
		kd_export_in_namespace(1), kd_export_number);
	return 0;
}

static void __exit kd_import_exit(void)
{
}

module_init(kd_import_init);
module_exit(kd_import_exit);
MODULE_DESCRIPTION("Imports from kd_export");
MODULE_IMPORT_NS(KD);
MODULE_LICENSE("GPL");
