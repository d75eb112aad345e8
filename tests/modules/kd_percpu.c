// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the loader and module_finalize() have to patch or register: per-CPU variables, jump labels, static calls,
 * alternatives, an exception table, exported data.
 *
 * Expected: loads and prints, in this order,
 *	kd_percpu: percpu=7 sum=N		N: 7 times the number of CPUs (each CPU has its copy)
 *	kd_percpu: counter=8 aligned=3		this CPU's copies, changed
 *	kd_percpu: pointer=NULL			its initial value is an address, but the kernel applies no relocations
 *						to the per-CPU section of a module, which it has copied by then
 *	kd_percpu: keys=0,1 then 1,0		static keys before and after both are flipped
 *	kd_percpu: call=2 then 3		a static call before and after it is redirected
 *	kd_percpu: kernel's key=0		a key of the kernel's (init_on_free=0), and cond_resched(), a static call
 *	kd_percpu: weak=absent			a weak symbol that nobody defines is no error
 *	kd_percpu: alternative agrees		code that was patched for this CPU says what the list of its features says
 *	kd_percpu: fault=-14			a read from user address 16, through this module's exception table
 * Exit prints "kd_percpu: bye", or what is wrong with the keys.
 */
#include <linux/cpumask.h>
#include <linux/init.h>
#include <linux/jump_label.h>
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/static_call.h>
#include <linux/uaccess.h>
#include <asm/cpufeature.h>

#ifdef CONFIG_ARM64
#define by_alternative() cpus_have_final_cap(ARM64_HAS_CRC32)
#define by_list() cpus_have_cap(ARM64_HAS_CRC32)
#else
#define by_alternative() static_cpu_has(X86_FEATURE_AES)
#define by_list() !!boot_cpu_has(X86_FEATURE_AES)
#endif

int kd_weak_nowhere(int x) __weak;
/* In code it would be in a global offset table on arm64, which modules do not have. */
static int (*volatile weak)(int x) = kd_weak_nowhere;

int kd_percpu_data[4] = { 1, 2, 3, 4 };
EXPORT_SYMBOL_GPL(kd_percpu_data);
DEFINE_PER_CPU(int, kd_percpu_counter) = 7;
EXPORT_PER_CPU_SYMBOL_GPL(kd_percpu_counter);
static DEFINE_PER_CPU_ALIGNED(u64, aligned) = 1;
/* This needs a relocation in the per-CPU section; see above. */
static DEFINE_PER_CPU(int *, pointer) = &kd_percpu_data[3];

static DEFINE_STATIC_KEY_FALSE(starts_false);
static DEFINE_STATIC_KEY_TRUE(starts_true);

static int add_one(int x)
{
	return x + 1;
}

static int add_two(int x)
{
	return x + 2;
}

DEFINE_STATIC_CALL(kd_percpu_call, add_one);

static noinline int key_false(void)
{
	return static_branch_unlikely(&starts_false) ? 1 : 0;
}

static noinline int key_true(void)
{
	return static_branch_likely(&starts_true) ? 1 : 0;
}

static noinline int read_user(const int __user *from)
{
	int value;

	if (!user_access_begin(from, sizeof(*from)))
		return -EPERM;
	unsafe_get_user(value, from, fault);
	user_access_end();
	return value;
fault:
	user_access_end();
	return -EFAULT;
}

static void test_percpu(void)
{
	int cpu, sum = 0;

	for_each_possible_cpu(cpu)
		sum += per_cpu(kd_percpu_counter, cpu);
	pr_info("kd_percpu: percpu=%d sum=%d\n", this_cpu_read(kd_percpu_counter), sum);
	this_cpu_inc(kd_percpu_counter);
	this_cpu_add(aligned, 2);
	pr_info("kd_percpu: counter=%d aligned=%llu\n", this_cpu_read(kd_percpu_counter), this_cpu_read(aligned));
	pr_info("kd_percpu: pointer=%s\n", this_cpu_read(pointer) ? "set" : "NULL");
}

static void test_keys(void)
{
	int was_false = key_false(), was_true = key_true();

	static_branch_enable(&starts_false);
	static_branch_disable(&starts_true);
	pr_info("kd_percpu: keys=%d,%d then %d,%d\n", was_false, was_true, key_false(), key_true());
}

static int __init kd_percpu_init(void)
{
	int before;

	test_percpu();
	test_keys();
	before = static_call(kd_percpu_call)(1);
	static_call_update(kd_percpu_call, add_two);
	pr_info("kd_percpu: call=%d then %d\n", before, static_call(kd_percpu_call)(1));
	cond_resched();
	pr_info("kd_percpu: kernel's key=%d\n", want_init_on_free());
	pr_info("kd_percpu: weak=%s\n", weak ? "present" : "absent");
	pr_info("kd_percpu: alternative %s\n", by_alternative() == by_list() ? "agrees" : "differs");
	pr_info("kd_percpu: fault=%d\n", read_user((const int __user *)16));
	return 0;
}

static void __exit kd_percpu_exit(void)
{
	pr_info("kd_percpu: %s\n", key_false() && !key_true() ? "bye" : "the keys are wrong");
}

module_init(kd_percpu_init);
module_exit(kd_percpu_exit);
MODULE_DESCRIPTION("Per-CPU data and code that is patched");
MODULE_LICENSE("GPL");
