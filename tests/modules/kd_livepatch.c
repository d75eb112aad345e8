// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A livepatch: of the kernel's /proc/cmdline, and of kd_export, whether that is loaded or not.
 *
 * Expected: loads with taint K; from then on /proc/cmdline reads "kd_livepatch: patched", and kd_export_gpl(x), loaded
 * before or after, is x + 4000. It is in use until 0 is written to /sys/kernel/livepatch/kd_livepatch/enabled.
 * With `broken` it patches a function that does not exist: its init fails with -ENOENT. A kernel without livepatches
 * (arm64's) refuses the mark alone, with -ENOEXEC.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/seq_file.h>

static bool broken;
module_param(broken, bool, 0444);
MODULE_PARM_DESC(broken, "patch a function that does not exist");

#ifdef CONFIG_LIVEPATCH
static int kd_livepatch_cmdline(struct seq_file *file, void *unused)
{
	seq_puts(file, "kd_livepatch: patched\n");
	return 0;
}

static int kd_livepatch_gpl(int x)
{
	return x + 4000;
}

static struct klp_func kernel_functions[] = {
	{ .old_name = "cmdline_proc_show", .new_func = kd_livepatch_cmdline },
	{ }
};

static struct klp_func module_functions[] = {
	{ .old_name = "kd_export_gpl", .new_func = kd_livepatch_gpl },
	{ }
};

static struct klp_object objects[] = {
	{ .funcs = kernel_functions },
	{ .name = "kd_export", .funcs = module_functions },
	{ }
};

static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objects };

static int __init kd_livepatch_init(void)
{
	if (broken)
		kernel_functions[0].old_name = "kd_exists_nowhere";
	return klp_enable_patch(&patch);
}
#else
static int __init kd_livepatch_init(void)
{
	return broken ? -ENOENT : 0;
}
#endif

static void __exit kd_livepatch_exit(void)
{
}

module_init(kd_livepatch_init);
module_exit(kd_livepatch_exit);
MODULE_DESCRIPTION("Patches the kernel and a module");
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
