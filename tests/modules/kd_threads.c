// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Asks user space for a module from tasks that have no user space of their own, many at once.
 *
 * Expected: loads when all have their answer; prints "kd_threads: request_module=N" for each (see kd_request.c).
 * With `fs` they ask for the file system `name`; prints "kd_threads: get_fs_type=N", 0 or -EINVAL where there is none.
 * `name` (kd-nothing) says which module is asked for, `threads` (1) how many kernel threads ask, `work`
 * (0) how many items of a work queue do, and `numbered` (N) that each of them asks for another name: the number
 * of the task, from 0, is put behind the name.
 */
#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/kmod.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

static char *name = "kd-nothing";
module_param(name, charp, 0444);
MODULE_PARM_DESC(name, "the module that is asked for");

static int threads = 1;
module_param(threads, int, 0444);
MODULE_PARM_DESC(threads, "how many threads ask");

static int work;
module_param(work, int, 0444);
MODULE_PARM_DESC(work, "how many items of a work queue ask");

static bool numbered;
module_param(numbered, bool, 0444);
MODULE_PARM_DESC(numbered, "each asks for a name of its own");

static bool fs;
module_param(fs, bool, 0444);
MODULE_PARM_DESC(fs, "ask for a file system");

struct kd_asker {
	struct work_struct work;
	int number;
};

static atomic_t left = ATOMIC_INIT(0);
static DECLARE_COMPLETION(answered);

static int kd_ask_for_fs(void)
{
	struct file_system_type *type = get_fs_type(name);

	if (!type)
		return -EINVAL;
	module_put(type->owner);
	return 0;
}

static void kd_ask(int number)
{
	int answer = fs ? kd_ask_for_fs() : numbered ? request_module("%s%d", name, number) : request_module("%s", name);

	pr_info("kd_threads: %s=%d\n", fs ? "get_fs_type" : "request_module", answer);
	if (atomic_dec_and_test(&left))
		complete(&answered);
}

static int kd_thread(void *data)
{
	kd_ask((long)data);
	return 0;
}

static void kd_work(struct work_struct *work)
{
	struct kd_asker *asker = container_of(work, struct kd_asker, work);

	kd_ask(asker->number);
}

static int __init kd_threads_init(void)
{
	struct kd_asker *askers = kcalloc(work + 1, sizeof(*askers), GFP_KERNEL);
	struct workqueue_struct *queue = alloc_workqueue("kd_threads", WQ_UNBOUND, 0);
	long number;

	if (!askers || !queue)
		return -ENOMEM; /* and leaks: it is a test */
	atomic_set(&left, threads + work);
	for (number = 0; number < threads; number++)
		if (IS_ERR(kthread_run(kd_thread, (void *)number, "kd_ask%ld", number)))
			atomic_dec(&left);
	for (number = 0; number < work; number++) {
		askers[number].number = threads + number;
		INIT_WORK(&askers[number].work, kd_work);
		queue_work(queue, &askers[number].work);
	}
	wait_for_completion(&answered);
	destroy_workqueue(queue);
	kfree(askers);
	return 0;
}

static void __exit kd_threads_exit(void)
{
}

module_init(kd_threads_init);
module_exit(kd_threads_exit);
MODULE_DESCRIPTION("Requests modules from threads and work queues");
MODULE_LICENSE("GPL");
