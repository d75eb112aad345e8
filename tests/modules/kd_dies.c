// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Crashes while it holds something, or elsewhere than in its init. `how` says where:
 *
 *	0	with interrupts off
 *	1	with preemption off
 *	2	as a reader of RCU
 *	3	in a timer, that is, in an interrupt
 *	4	in a work queue
 *	5	with a mutex held
 *
 * Expected: 0, 1, 2, 5: the task that loads it dies, the kernel goes on, and says for 0 and 1 what is left switched
 * off; 3: the kernel panics; 4: the worker dies.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/timer.h>
#include <linux/workqueue.h>

static int how;
module_param(how, int, 0444);
MODULE_PARM_DESC(how, "where to crash");

static int *volatile nothing;
static DEFINE_MUTEX(lock);

static noinline void kd_dies_now(void)
{
	*nothing = 1;
}

static void kd_dies_in_timer(struct timer_list *unused)
{
	kd_dies_now();
}

static void kd_dies_in_worker(struct work_struct *unused)
{
	kd_dies_now();
}

static DEFINE_TIMER(kd_dies_timer, kd_dies_in_timer);
static DECLARE_WORK(kd_dies_work, kd_dies_in_worker);

static int __init kd_dies_init(void)
{
	switch (how) {
	case 0:
		local_irq_disable();
		break;
	case 1:
		preempt_disable();
		break;
	case 2:
		rcu_read_lock();
		break;
	case 3:
		mod_timer(&kd_dies_timer, jiffies + 1);
		return 0;
	case 4:
		schedule_work(&kd_dies_work);
		return 0;
	case 5:
		mutex_lock(&lock);
		break;
	}
	kd_dies_now();
	return 0;
}

static void __exit kd_dies_exit(void)
{
}

module_init(kd_dies_init);
module_exit(kd_dies_exit);
MODULE_DESCRIPTION("Crashes in bad places");
MODULE_LICENSE("GPL");
