// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * An init that takes its time, or for ever.
 *
 * Expected, by the parameter `how`:
 *	0  loops for ever, interrupts on	never returns
 *	1  spins until 10 jiffies passed	loads, "kd_spin: done"
 *	2  loops for ever, interrupts off	never returns
 *	3  sleeps for what never comes		never returns (task in state D)
 *	4  sleeps HZ/10 jiffies			loads, "kd_spin: done"
 *	5  mdelay(20)				loads, "kd_spin: done"
 *	6  loops for ever, rescheduling		never returns (other tasks run)
 * kd_spin_forever, or kd_spin_sleep for 3, is in the backtrace of those that never return.
 */
#include <linux/delay.h>
#include <linux/init.h>
#include <linux/irqflags.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/wait.h>

static int how;
module_param(how, int, 0444);
MODULE_PARM_DESC(how, "in which way, 0 to 6");

static DECLARE_WAIT_QUEUE_HEAD(queue);
static bool never;

static noinline void kd_spin_forever(void)
{
	while (!READ_ONCE(never))
		cpu_relax();
}

static noinline void kd_spin_sleep(void)
{
	wait_event(queue, READ_ONCE(never));
}

static noinline void kd_spin_jiffies(void)
{
	unsigned long end = jiffies + 10;

	while (time_before(jiffies, end))
		cpu_relax();
}

static noinline void kd_spin_reschedule(void)
{
	while (!READ_ONCE(never))
		cond_resched();
}

static int __init kd_spin_init(void)
{
	unsigned long flags;

	switch (how) {
	case 0:
		kd_spin_forever();
		break;
	case 1:
		kd_spin_jiffies();
		break;
	case 2:
		local_irq_save(flags);
		kd_spin_forever();
		local_irq_restore(flags);
		break;
	case 3:
		kd_spin_sleep();
		break;
	case 4:
		schedule_timeout_uninterruptible(HZ / 10);
		break;
	case 5:
		mdelay(20);
		break;
	case 6:
		kd_spin_reschedule();
		break;
	}
	pr_info("kd_spin: done\n");
	return 0;
}

static void __exit kd_spin_exit(void)
{
}

module_init(kd_spin_init);
module_exit(kd_spin_exit);
MODULE_DESCRIPTION("Spins or sleeps in init");
MODULE_LICENSE("GPL");
