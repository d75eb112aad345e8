// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Waits for what may never come.
 *
 * Expected: loads; /dev/kd_wait. What waits for whom says the parameter `how`, which can be changed:
 *	1  wait_event_interruptible()	a signal ends it: -ERESTARTSYS
 *	2  wait_event_killable()	a fatal signal ends it: -ERESTARTSYS
 *	3  wait_event()			state D: only an event ends it
 *	4  no event; one jiffy		a read gives one byte, and so for ever
 * A read waits so, then it is the end of the file; `reads` counts those that have ended. With init=1 the init waits
 * so, too, and fails with the wait's error. A write is the event, for all that wait and for ever. The functions that
 * wait are kd_wait_interruptible, kd_wait_killable and kd_wait_event.
 */
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

static int how;
static int reads;
static bool init;
module_param(how, int, 0644);
MODULE_PARM_DESC(how, "how to wait, 1 to 4");
module_param(reads, int, 0444);
module_param(init, bool, 0444);
MODULE_PARM_DESC(init, "wait in init");

static DECLARE_WAIT_QUEUE_HEAD(queue);
static bool event;

static noinline int kd_wait_interruptible(void)
{
	int error = wait_event_interruptible(queue, READ_ONCE(event));

	barrier();
	return error;
}

static noinline int kd_wait_killable(void)
{
	int error = wait_event_killable(queue, READ_ONCE(event));

	barrier();
	return error;
}

static noinline int kd_wait_event(void)
{
	wait_event(queue, READ_ONCE(event));
	barrier();
	return 0;
}

static noinline int kd_wait_now(void)
{
	int error = 0;

	switch (how) {
	case 1:
		error = kd_wait_interruptible();
		break;
	case 2:
		error = kd_wait_killable();
		break;
	case 3:
		error = kd_wait_event();
		break;
	case 4:
		schedule_timeout_uninterruptible(1);
		break;
	}
	barrier();
	return error;
}

static ssize_t kd_wait_read(struct file *file, char __user *to, size_t count, loff_t *position)
{
	int error = kd_wait_now();

	reads++;
	if (error)
		return error;
	if (how != 4 || !count)
		return 0;
	return put_user('.', to) ? -EFAULT : 1;
}

static ssize_t kd_wait_write(struct file *file, const char __user *from, size_t count, loff_t *position)
{
	WRITE_ONCE(event, true);
	wake_up_all(&queue);
	return count;
}

static const struct file_operations kd_wait_fops = {
	.owner = THIS_MODULE,
	.read = kd_wait_read,
	.write = kd_wait_write,
};

static struct miscdevice kd_wait_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kd_wait",
	.fops = &kd_wait_fops,
};

static int __init kd_wait_init(void)
{
	int error = misc_register(&kd_wait_device);

	if (!error && init) {
		error = kd_wait_now();
		if (error)
			misc_deregister(&kd_wait_device);
	}
	return error;
}

static void __exit kd_wait_exit(void)
{
	misc_deregister(&kd_wait_device);
}

module_init(kd_wait_init);
module_exit(kd_wait_exit);
MODULE_DESCRIPTION("Waits in read or in init");
MODULE_LICENSE("GPL");
