/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef KD_PART_H
#define KD_PART_H

int kd_part_sum(int value);

#endif
