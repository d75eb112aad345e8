// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Allocates and does not free.
 *
 * Expected: loads and is removed without complaint. Left behind, by kind: ten kmalloc(123) (kmalloc-128), one
 * vmalloc of three pages, and five objects of the cache "kd_leak" (200 bytes), which stays, too. With
 * destroy=1 exit tries to destroy the cache, and the kernel complains: "BUG kd_leak (...): Objects remaining",
 * "in kd_leak" (6.1 only), "on __kmem_cache_shutdown()", and a WARNING. Load it once a boot: the
 * cache's name is taken afterwards.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

static bool destroy;
module_param(destroy, bool, 0444);
MODULE_PARM_DESC(destroy, "destroy the cache with objects in it");

static void *chunks[10], *pages, *objects[5];
static struct kmem_cache *cache;

static int __init kd_leak_init(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(chunks); i++) {
		chunks[i] = kmalloc(123, GFP_KERNEL);
		if (!chunks[i])
			return -ENOMEM;
	}
	pages = vmalloc(3 * PAGE_SIZE);
	/* With a part that may be copied to user space, a cache is not merged with one of the kernel's. */
	cache = kmem_cache_create_usercopy("kd_leak", 200, 0, 0, 0, 200, NULL);
	if (!pages || !cache)
		return -ENOMEM;
	for (i = 0; i < ARRAY_SIZE(objects); i++) {
		objects[i] = kmem_cache_alloc(cache, GFP_KERNEL);
		if (!objects[i])
			return -ENOMEM;
	}
	pr_info("kd_leak: allocated\n");
	return 0;
}

static void __exit kd_leak_exit(void)
{
	if (destroy)
		kmem_cache_destroy(cache);
	pr_info("kd_leak: freed nothing\n");
}

module_init(kd_leak_init);
module_exit(kd_leak_exit);
MODULE_DESCRIPTION("Leaks memory");
MODULE_LICENSE("GPL");
