/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The requests that /dev/kd_misc knows; tests compute the same numbers. */
#ifndef KD_MISC_H
#define KD_MISC_H

#include <linux/ioctl.h>

#define KD_MISC_GET _IOR('k', 1, int)
#define KD_MISC_SET _IOW('k', 2, int)

#endif
