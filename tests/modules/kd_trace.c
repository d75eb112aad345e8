// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A tracepoint and a probe on it, and a module notifier.
 *
 * Expected: loads and prints "kd_trace: hits=1 sum=5": of two events the probe was there for one. The event
 * kd_trace:kd_trace_event exists as long as the module. The notifier prints "kd_trace: NAME coming", "live" and
 * "going" for modules that come and go afterwards.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/notifier.h>

#define CREATE_TRACE_POINTS
#include "kd_trace.h"

static int hits, sum;
module_param(hits, int, 0444);

static void probe(void *unused, int number)
{
	hits++;
	sum += number;
}

static int notified(struct notifier_block *block, unsigned long state, void *data)
{
	const struct module *module = data;

	if (state == MODULE_STATE_COMING)
		pr_info("kd_trace: %s coming\n", module->name);
	else if (state == MODULE_STATE_LIVE)
		pr_info("kd_trace: %s live\n", module->name);
	else if (state == MODULE_STATE_GOING)
		pr_info("kd_trace: %s going\n", module->name);
	return NOTIFY_OK;
}

static struct notifier_block notifier = {
	.notifier_call = notified,
};

static int __init kd_trace_init(void)
{
	int error = register_module_notifier(&notifier);

	if (error)
		return error;
	trace_kd_trace_event(3);
	error = register_trace_kd_trace_event(probe, NULL);
	if (error) {
		unregister_module_notifier(&notifier);
		return error;
	}
	trace_kd_trace_event(5);
	pr_info("kd_trace: hits=%d sum=%d\n", hits, sum);
	return 0;
}

static void __exit kd_trace_exit(void)
{
	unregister_trace_kd_trace_event(probe, NULL);
	tracepoint_synchronize_unregister();
	unregister_module_notifier(&notifier);
}

module_init(kd_trace_init);
module_exit(kd_trace_exit);
MODULE_DESCRIPTION("A tracepoint and a module notifier");
MODULE_LICENSE("GPL");
