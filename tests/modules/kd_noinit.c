// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Neither init nor exit.
 *
 * Expected: loads, says nothing, has its parameter `number`, and can be removed.
 */
#include <linux/module.h>

static int number = 3;
module_param(number, int, 0644);

MODULE_DESCRIPTION("Nothing but a parameter");
MODULE_LICENSE("GPL");
