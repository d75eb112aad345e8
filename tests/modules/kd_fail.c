// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Registers a proc file and a misc device, undoes both, and fails.
 *
 * Expected: init returns -error (a parameter; 12, -ENOMEM, unless given) after printing
 * "kd_fail: registered" and "kd_fail: undone"; nothing of it is left: no module, no /proc/kd_fail, no
 * /dev/kd_fail, no memory. error=0 loads, with nothing registered.
 */
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/proc_fs.h>

static int error = 12;
module_param(error, int, 0444);
MODULE_PARM_DESC(error, "what init fails with, as a positive number");

static const struct proc_ops kd_fail_proc_ops = {
	.proc_lseek = noop_llseek,
};

static const struct file_operations kd_fail_fops = {
	.owner = THIS_MODULE,
};

static struct miscdevice kd_fail_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kd_fail",
	.fops = &kd_fail_fops,
};

static int __init kd_fail_init(void)
{
	int status;

	if (!proc_create("kd_fail", 0444, NULL, &kd_fail_proc_ops))
		return -EEXIST;
	status = misc_register(&kd_fail_device);
	if (!status) {
		pr_info("kd_fail: registered\n");
		misc_deregister(&kd_fail_device);
		status = -error;
	}
	remove_proc_entry("kd_fail", NULL);
	pr_info("kd_fail: undone\n");
	return status;
}

static void __exit kd_fail_exit(void)
{
	pr_info("kd_fail: bye\n");
}

module_init(kd_fail_init);
module_exit(kd_fail_exit);
MODULE_DESCRIPTION("Fails after having registered something");
MODULE_LICENSE("GPL");
