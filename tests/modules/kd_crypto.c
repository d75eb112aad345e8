// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Asks for an algorithm of the kernel's crypto API, by its name or as an instance of a template.
 *
 * Expected: loads; prints "kd_crypto: KIND NAME: DRIVER", where DRIVER is what the algorithm that was found calls
 * itself, or "kd_crypto: KIND NAME: -ERRNO". `kind` (shash) is "aead", "akcipher", "shash" or "skcipher".
 */
#include <crypto/aead.h>
#include <crypto/akcipher.h>
#include <crypto/hash.h>
#include <crypto/skcipher.h>
#include <linux/err.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/string.h>

static char *kind = "shash";
module_param(kind, charp, 0444);
MODULE_PARM_DESC(kind, "what is asked for");

static char *name = "sha256";
module_param(name, charp, 0444);
MODULE_PARM_DESC(name, "its name");

static void kd_crypto_say(struct crypto_tfm *tfm)
{
	pr_info("kd_crypto: %s %s: %s\n", kind, name, crypto_tfm_alg_driver_name(tfm));
}

#define ASK(type, base)								\
	do {									\
		struct crypto_##type *found = crypto_alloc_##type(name, 0, 0);	\
										\
		if (IS_ERR(found))						\
			return PTR_ERR(found);					\
		kd_crypto_say(base(found));					\
		crypto_free_##type(found);					\
		return 0;							\
	} while (0)

static long kd_crypto_ask(void)
{
	if (!strcmp(kind, "aead"))
		ASK(aead, crypto_aead_tfm);
	if (!strcmp(kind, "akcipher"))
		ASK(akcipher, crypto_akcipher_tfm);
	if (!strcmp(kind, "shash"))
		ASK(shash, crypto_shash_tfm);
	ASK(skcipher, crypto_skcipher_tfm);
}

static int __init kd_crypto_init(void)
{
	long error = kd_crypto_ask();

	if (error)
		pr_info("kd_crypto: %s %s: %ld\n", kind, name, error);
	return 0;
}

static void __exit kd_crypto_exit(void)
{
}

module_init(kd_crypto_init);
module_exit(kd_crypto_exit);
MODULE_DESCRIPTION("Asks for algorithms");
MODULE_LICENSE("GPL");
