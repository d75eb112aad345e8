/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef KD_EXPORT_H
#define KD_EXPORT_H

int kd_export_plain(int x);
int kd_export_gpl(int x);
int kd_export_in_namespace(int x);
extern int kd_export_number;

#endif
