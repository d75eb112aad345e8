// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A greeting, with parameters of every type.
 *
 * Expected: loads; init prints "kd_hello: hello" and then each parameter, in the order below, as
 * "kd_hello: name=value" (arrays: the elements that were given, joined by commas; bool as Y or N); exit
 * prints "kd_hello: bye", and then the parameter even's own ops print "kd_hello: free even=2", as they also
 * do whenever loading fails at a parameter. /sys/module/kd_hello/parameters has every parameter but `hidden` and
 * `noarg` (mode 0).
 *
 *	byte=256			-ERANGE, nothing loaded
 *	int=1x, bool=perhaps		-EINVAL
 *	ints=1,2,3,4,5			-EINVAL, "ints: can only take 4 arguments"
 *	text=123456789012345678901	-ENOSPC, "text: string doesn't fit in 19 chars."
 *	int (no value)			-EINVAL; bool, noarg: without a value they mean yes
 *	enable_only=0			-EROFS once it is 1
 *	even=3				-ERANGE, from this module's own ops
 *	dangerous=1			loads, "Setting dangerous option dangerous - tainting kernel", taint U
 *	nothing=1			loads, "kd_hello: unknown parameter 'nothing' ignored"
 *	int-value, int_value		the same parameter
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/sysfs.h>

static unsigned char a_byte = 8;
static short a_short = -16;
static unsigned short a_ushort = 16;
static int an_int = -32;
static unsigned int a_uint = 32;
static long a_long = -64;
static unsigned long a_ulong = 64;
static unsigned long long a_ullong = 128;
static unsigned int a_hexint = 0xbeef;
static char *whom = "world";
static bool a_bool;
static bool an_invbool = true;
static int a_bint;
static bool enable_only;
static char text[20] = "short";
static int int_value = 1;
static int ints[4] = { 1, 2 };
static unsigned int ints_count = 2;
static char *names[3] = { "a", "b" };
static unsigned int names_count = 2;
static int hidden = 7;
static int dangerous;
static int even = 2;
static bool noarg;

module_param_named(byte, a_byte, byte, 0644);
MODULE_PARM_DESC(byte, "0 to 255");
module_param_named(short, a_short, short, 0644);
module_param_named(ushort, a_ushort, ushort, 0644);
module_param_named(int, an_int, int, 0644);
MODULE_PARM_DESC(int, "any int");
module_param_named(uint, a_uint, uint, 0644);
module_param_named(long, a_long, long, 0644);
module_param_named(ulong, a_ulong, ulong, 0444);
module_param_named(ullong, a_ullong, ullong, 0444);
module_param_named(hexint, a_hexint, hexint, 0644);
module_param(whom, charp, 0644);
MODULE_PARM_DESC(whom, "who is greeted");
module_param_named(bool, a_bool, bool, 0644);
module_param_named(invbool, an_invbool, invbool, 0644);
module_param_named(bint, a_bint, bint, 0644);
module_param(enable_only, bool_enable_only, 0644);
module_param_string(text, text, sizeof(text), 0644);
module_param(int_value, int, 0444);
module_param_array(ints, int, &ints_count, 0644);
module_param_array(names, charp, &names_count, 0444);
module_param(hidden, int, 0);
module_param_unsafe(dangerous, int, 0644);

static int even_set(const char *value, const struct kernel_param *kp)
{
	int number, error = kstrtoint(value, 0, &number);

	if (error)
		return error;
	if (number & 1)
		return -ERANGE;
	*(int *)kp->arg = number;
	pr_info("kd_hello: set even=%d\n", number);
	return 0;
}

static int even_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%d is even\n", *(int *)kp->arg);
}

static void even_free(void *arg)
{
	pr_info("kd_hello: free even=%d\n", *(int *)arg);
}

static const struct kernel_param_ops even_ops = {
	.set = even_set,
	.get = even_get,
	.free = even_free,
};
module_param_cb(even, &even_ops, &even, 0644);
MODULE_PARM_DESC(even, "an even number");

static int noarg_set(const char *value, const struct kernel_param *kp)
{
	*(bool *)kp->arg = true;
	pr_info("kd_hello: set noarg (%s)\n", value ? value : "no value");
	return 0;
}

static const struct kernel_param_ops noarg_ops = {
	.flags = KERNEL_PARAM_OPS_FL_NOARG,
	.set = noarg_set,
};
module_param_cb(noarg, &noarg_ops, &noarg, 0);

static void print_arrays(void)
{
	char line[80];
	unsigned int i;
	int length = 0;

	for (i = 0; i < ints_count; i++)
		length += scnprintf(line + length, sizeof(line) - length, "%s%d", i ? "," : "", ints[i]);
	pr_info("kd_hello: ints=%s\n", ints_count ? line : "");
	for (i = 0, length = 0; i < names_count; i++)
		length += scnprintf(line + length, sizeof(line) - length, "%s%s", i ? "," : "", names[i]);
	pr_info("kd_hello: names=%s\n", names_count ? line : "");
}

static int __init kd_hello_init(void)
{
	pr_info("kd_hello: hello\n");
	pr_info("kd_hello: byte=%u\n", a_byte);
	pr_info("kd_hello: short=%d\n", a_short);
	pr_info("kd_hello: ushort=%u\n", a_ushort);
	pr_info("kd_hello: int=%d\n", an_int);
	pr_info("kd_hello: uint=%u\n", a_uint);
	pr_info("kd_hello: long=%ld\n", a_long);
	pr_info("kd_hello: ulong=%lu\n", a_ulong);
	pr_info("kd_hello: ullong=%llu\n", a_ullong);
	pr_info("kd_hello: hexint=%#x\n", a_hexint);
	pr_info("kd_hello: whom=%s\n", whom);
	pr_info("kd_hello: bool=%c\n", a_bool ? 'Y' : 'N');
	/* The value of the variable: the parameter reads as the opposite. */
	pr_info("kd_hello: invbool=%c\n", an_invbool ? 'Y' : 'N');
	pr_info("kd_hello: bint=%d\n", a_bint);
	pr_info("kd_hello: enable_only=%c\n", enable_only ? 'Y' : 'N');
	pr_info("kd_hello: text=%s\n", text);
	pr_info("kd_hello: int_value=%d\n", int_value);
	print_arrays();
	pr_info("kd_hello: hidden=%d\n", hidden);
	pr_info("kd_hello: dangerous=%d\n", dangerous);
	pr_info("kd_hello: even=%d\n", even);
	pr_info("kd_hello: noarg=%c\n", noarg ? 'Y' : 'N');
	return 0;
}

static void __exit kd_hello_exit(void)
{
	pr_info("kd_hello: bye\n");
}

module_init(kd_hello_init);
module_exit(kd_hello_exit);
MODULE_DESCRIPTION("Greets, and has parameters of every type");
MODULE_AUTHOR("kodojo");
MODULE_VERSION("1.0");
MODULE_ALIAS("kodojo-greeting");
MODULE_LICENSE("GPL");
