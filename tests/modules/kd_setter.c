// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A parameter whose setter returns the number that it is given.
 *
 * Expected: answer=0 is accepted; answer=-N is refused with errno N; answer=N, a positive number, is said to be invalid
 * and taken for the address of arguments after `--': the module loads. With `trace=' the setter prints the way to it.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/printk.h>

static int kd_set(const char *text, const struct kernel_param *parameter)
{
	int answer;
	int error = kstrtoint(text, 0, &answer);

	return error ? error : answer;
}

static int kd_trace(const char *text, const struct kernel_param *parameter)
{
	dump_stack();
	return 0;
}

static const struct kernel_param_ops tracing = {
	.set = kd_trace,
};

module_param_cb(trace, &tracing, NULL, 0200);
MODULE_PARM_DESC(trace, "prints a backtrace");

static const struct kernel_param_ops operations = {
	.set = kd_set,
};

module_param_cb(answer, &operations, NULL, 0200);
MODULE_PARM_DESC(answer, "what the setter returns");

static int __init kd_setter_init(void)
{
	return 0;
}

static void __exit kd_setter_exit(void)
{
}

module_init(kd_setter_init);
module_exit(kd_setter_exit);
MODULE_DESCRIPTION("A setter that returns what it is told");
MODULE_LICENSE("GPL");
