// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Uses an export in the namespace KD without importing it: modpost would refuse that, so kbuild.py renames
 * the tag import_ns in the finished module.
 *
 * Expected, with kd_export loaded: -EINVAL, "kd_import_without_ns: module uses symbol (kd_export_in_namespace)
 * from namespace KD, but does not import it." and "kd_import_without_ns: Unknown symbol kd_export_in_namespace
 * (err -22)". It holds no reference to kd_export afterwards.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>

#include "kd_export.h"

static int __init kd_import_without_ns_init(void)
{
	pr_info("kd_import_without_ns: namespace=%d\n", kd_export_in_namespace(1));
	return 0;
}

static void __exit kd_import_without_ns_exit(void)
{
}

module_init(kd_import_without_ns_init);
module_exit(kd_import_without_ns_exit);
MODULE_DESCRIPTION("Forgets to import a namespace");
MODULE_IMPORT_NS(KD);
MODULE_LICENSE("GPL");
