// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Everything that runs later: a timer, a work item, a delayed work, a kernel thread, an hrtimer, a tasklet,
 * an RCU callback.
 *
 * Expected: loads. As time passes, /sys/module/kd_timer/parameters/ reach: timer 3 (it re-arms itself each
 * jiffy), work 1, delayed_work 1 (after 2 jiffies), thread 1, hrtimer 3 (each millisecond), tasklet 1,
 * rcu 1, and completed Y once all have run. Init does not wait; with wait=1 it does: it prints
 * "kd_timer: completed=1" (0 after five seconds without) and, after msleep(50), "kd_timer: slept=1" if at least
 * 50 ms of jiffies have passed. The thread "kd_timer" lives until exit, which stops everything and
 * prints "kd_timer: stopped".
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/hrtimer.h>
#include <linux/init.h>
#include <linux/interrupt.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/timer.h>
#include <linux/workqueue.h>

#define SOURCES 7
#define REPEAT 3

static int timer_runs, work_runs, delayed_work_runs, thread_runs, hrtimer_runs, tasklet_runs, rcu_runs;
static bool completed;
static bool wait;

module_param_named(timer, timer_runs, int, 0444);
module_param_named(work, work_runs, int, 0444);
module_param_named(delayed_work, delayed_work_runs, int, 0444);
module_param_named(thread, thread_runs, int, 0444);
module_param_named(hrtimer, hrtimer_runs, int, 0444);
module_param_named(tasklet, tasklet_runs, int, 0444);
module_param_named(rcu, rcu_runs, int, 0444);
module_param(completed, bool, 0444);
module_param(wait, bool, 0444);
MODULE_PARM_DESC(wait, "init waits until everything has run");

static DECLARE_COMPLETION(all_done);
static atomic_t sources_left = ATOMIC_INIT(SOURCES);

static void source_done(void)
{
	if (atomic_dec_and_test(&sources_left)) {
		completed = true;
		complete_all(&all_done);
	}
}

static void timer_function(struct timer_list *timer)
{
	if (++timer_runs < REPEAT)
		mod_timer(timer, jiffies + 1);
	else
		source_done();
}

static DEFINE_TIMER(the_timer, timer_function);

static void work_function(struct work_struct *work)
{
	work_runs++;
	source_done();
}

static DECLARE_WORK(the_work, work_function);

static void delayed_work_function(struct work_struct *work)
{
	delayed_work_runs++;
	source_done();
}

static DECLARE_DELAYED_WORK(the_delayed_work, delayed_work_function);

static int thread_function(void *unused)
{
	thread_runs++;
	source_done();
	for (;;) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (kthread_should_stop())
			break;
		schedule();
	}
	__set_current_state(TASK_RUNNING);
	return 0;
}

static struct task_struct *the_thread;

static enum hrtimer_restart hrtimer_function(struct hrtimer *timer)
{
	if (++hrtimer_runs < REPEAT) {
		hrtimer_forward_now(timer, ms_to_ktime(1));
		return HRTIMER_RESTART;
	}
	source_done();
	return HRTIMER_NORESTART;
}

static struct hrtimer the_hrtimer;

static void tasklet_function(struct tasklet_struct *tasklet)
{
	tasklet_runs++;
	source_done();
}

static DECLARE_TASKLET(the_tasklet, tasklet_function);

static void rcu_function(struct rcu_head *head)
{
	rcu_runs++;
	source_done();
}

static struct rcu_head the_rcu_head;

static void wait_for_all(void)
{
	unsigned long before;

	pr_info("kd_timer: completed=%d\n", wait_for_completion_timeout(&all_done, 5 * HZ) > 0);
	before = jiffies;
	msleep(50);
	pr_info("kd_timer: slept=%d\n", time_after_eq(jiffies, before + msecs_to_jiffies(50)));
}

static int __init kd_timer_init(void)
{
	the_thread = kthread_run(thread_function, NULL, "kd_timer");
	if (IS_ERR(the_thread))
		return PTR_ERR(the_thread);
	mod_timer(&the_timer, jiffies + 1);
	hrtimer_init(&the_hrtimer, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
	the_hrtimer.function = hrtimer_function;
	hrtimer_start(&the_hrtimer, ms_to_ktime(1), HRTIMER_MODE_REL);
	schedule_work(&the_work);
	schedule_delayed_work(&the_delayed_work, 2);
	tasklet_schedule(&the_tasklet);
	call_rcu(&the_rcu_head, rcu_function);
	if (wait)
		wait_for_all();
	return 0;
}

static void __exit kd_timer_exit(void)
{
	kthread_stop(the_thread);
	del_timer_sync(&the_timer);
	hrtimer_cancel(&the_hrtimer);
	cancel_work_sync(&the_work);
	cancel_delayed_work_sync(&the_delayed_work);
	tasklet_kill(&the_tasklet);
	rcu_barrier();
	pr_info("kd_timer: stopped\n");
}

module_init(kd_timer_init);
module_exit(kd_timer_exit);
MODULE_DESCRIPTION("Timers, work, threads and other things that run later");
MODULE_LICENSE("GPL");
