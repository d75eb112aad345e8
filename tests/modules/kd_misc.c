// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A misc character device.
 *
 * Expected: loads; /dev/kd_misc, /sys/class/misc/kd_misc (dynamic minor, mode 0600). 64 bytes, zeroed, of fixed
 * size: reads end at 64, writes from there give -ENOSPC, llseek within 0 to 64 (beyond: -EINVAL). ioctl:
 * 0x80046b01 gets the number (initially 42), 0x40046b02 sets it (negative: -EINVAL), anything else -ENOTTY, a bad
 * pointer -EFAULT. `opens` counts open files; while there are any, the module's reference count is as
 * high and removal gives -EWOULDBLOCK (-EAGAIN).
 */
#include <linux/atomic.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/uaccess.h>

#include "kd_misc.h"

static DEFINE_MUTEX(lock);
static char data[64];
static int number = 42;
static atomic_t open_files = ATOMIC_INIT(0);

module_param_named(opens, open_files.counter, int, 0444);
MODULE_PARM_DESC(opens, "how many files are open");

static int kd_misc_open(struct inode *inode, struct file *file)
{
	atomic_inc(&open_files);
	return 0;
}

static int kd_misc_release(struct inode *inode, struct file *file)
{
	atomic_dec(&open_files);
	return 0;
}

static ssize_t kd_misc_read(struct file *file, char __user *to, size_t count, loff_t *position)
{
	ssize_t done;

	mutex_lock(&lock);
	done = simple_read_from_buffer(to, count, position, data, sizeof(data));
	mutex_unlock(&lock);
	return done;
}

static ssize_t kd_misc_write(struct file *file, const char __user *from, size_t count, loff_t *position)
{
	ssize_t done;

	if (count && *position >= sizeof(data))
		return -ENOSPC;
	mutex_lock(&lock);
	done = simple_write_to_buffer(data, sizeof(data), position, from, count);
	mutex_unlock(&lock);
	return done;
}

static loff_t kd_misc_llseek(struct file *file, loff_t offset, int whence)
{
	return fixed_size_llseek(file, offset, whence, sizeof(data));
}

static long kd_misc_ioctl(struct file *file, unsigned int request, unsigned long argument)
{
	int __user *pointer = (int __user *)argument;
	int wanted;

	switch (request) {
	case KD_MISC_GET:
		return put_user(READ_ONCE(number), pointer);
	case KD_MISC_SET:
		if (get_user(wanted, pointer))
			return -EFAULT;
		if (wanted < 0)
			return -EINVAL;
		WRITE_ONCE(number, wanted);
		return 0;
	default:
		return -ENOTTY;
	}
}

static const struct file_operations kd_misc_fops = {
	.owner = THIS_MODULE,
	.open = kd_misc_open,
	.release = kd_misc_release,
	.read = kd_misc_read,
	.write = kd_misc_write,
	.llseek = kd_misc_llseek,
	.unlocked_ioctl = kd_misc_ioctl,
};

static struct miscdevice kd_misc_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kd_misc",
	.fops = &kd_misc_fops,
};

module_misc_device(kd_misc_device);
MODULE_DESCRIPTION("A misc character device");
MODULE_LICENSE("GPL");
