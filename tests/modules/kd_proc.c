// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A proc file that reads and writes.
 *
 * Expected: loads; /proc/kd_proc (mode 0644) reads "empty\n" first. A write at offset 0 replaces the text, a
 * later one through the same open file continues it. The text is at most 4096 bytes: a write that would go
 * beyond gives -ENOSPC and changes nothing. A buffer that cannot be read gives -EFAULT. On exit the file is gone.
 */
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/uaccess.h>

#define CAPACITY 4096

static DEFINE_MUTEX(lock);
static char text[CAPACITY] = "empty\n";
static size_t length = 6;

static ssize_t kd_proc_read(struct file *file, char __user *to, size_t count, loff_t *position)
{
	ssize_t done;

	mutex_lock(&lock);
	done = simple_read_from_buffer(to, count, position, text, length);
	mutex_unlock(&lock);
	return done;
}

static ssize_t kd_proc_write(struct file *file, const char __user *from, size_t count, loff_t *position)
{
	ssize_t done;

	if (*position < 0 || *position > CAPACITY || count > CAPACITY - *position)
		return -ENOSPC;
	mutex_lock(&lock);
	done = simple_write_to_buffer(text, CAPACITY, position, from, count);
	if (done >= 0)
		length = *position;
	mutex_unlock(&lock);
	return done;
}

static const struct proc_ops kd_proc_ops = {
	.proc_read = kd_proc_read,
	.proc_write = kd_proc_write,
	.proc_lseek = default_llseek,
};

static int __init kd_proc_init(void)
{
	return proc_create("kd_proc", 0644, NULL, &kd_proc_ops) ? 0 : -ENOMEM;
}

static void __exit kd_proc_exit(void)
{
	remove_proc_entry("kd_proc", NULL);
}

module_init(kd_proc_init);
module_exit(kd_proc_exit);
MODULE_DESCRIPTION("A proc file that gives back what was written");
MODULE_LICENSE("GPL");
