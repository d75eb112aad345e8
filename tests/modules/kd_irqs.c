// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * An init that comes back with preemption or interrupts disabled.
 *
 * Expected: loads; do_one_initcall() repairs it and warns (WARNING, with a backtrace): "initcall
 * kd_irqs_init+0x0/... [kd_irqs] returned with ...", by the parameter `how`:
 *	0  "preemption imbalance"
 *	1  "disabled interrupts"
 *	2  both: "preemption imbalance disabled interrupts"
 * Anything else: no warning. Afterwards the task can sleep as ever.
 */
#include <linux/init.h>
#include <linux/irqflags.h>
#include <linux/module.h>
#include <linux/preempt.h>

static int how;
module_param(how, int, 0444);
MODULE_PARM_DESC(how, "0: preemption, 1: interrupts, 2: both");

static int __init kd_irqs_init(void)
{
	if (how == 0 || how == 2)
		preempt_disable();
	if (how == 1 || how == 2)
		local_irq_disable();
	return 0;
}

static void __exit kd_irqs_exit(void)
{
}

module_init(kd_irqs_init);
module_exit(kd_irqs_exit);
MODULE_DESCRIPTION("Returns from init in a wrong state");
MODULE_LICENSE("GPL");
