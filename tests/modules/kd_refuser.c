// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Watches other modules come and go, and refuses one.
 *
 * Expected: prints "kd_refuser: NAME STATE" for each change of state of a module (0 live, 1 coming, 2 going). The
 * module named `name` (none) fails to load with `error` (-EACCES).
 */
#include <linux/errno.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/string.h>

static char *name = "";
module_param(name, charp, 0644);
MODULE_PARM_DESC(name, "the module that may not be loaded");
static int error = -EACCES;
module_param(error, int, 0644);
MODULE_PARM_DESC(error, "what its load ends with");

static int kd_refuser_notify(struct notifier_block *self, unsigned long state, void *data)
{
	struct module *mod = data;

	pr_info("kd_refuser: %s %lu\n", mod->name, state);
	if (state == MODULE_STATE_COMING && !strcmp(mod->name, name))
		return notifier_from_errno(error);
	return NOTIFY_OK;
}

static struct notifier_block kd_refuser_block = { .notifier_call = kd_refuser_notify };

static int __init kd_refuser_init(void)
{
	return register_module_notifier(&kd_refuser_block);
}

static void __exit kd_refuser_exit(void)
{
	unregister_module_notifier(&kd_refuser_block);
}

module_init(kd_refuser_init);
module_exit(kd_refuser_exit);
MODULE_DESCRIPTION("Refuses other modules");
MODULE_LICENSE("GPL");
