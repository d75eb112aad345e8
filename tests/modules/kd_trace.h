/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The tracepoint of kd_trace.c. Read several times, as trace headers are. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kd_trace

#if !defined(KD_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define KD_TRACE_H

#include <linux/tracepoint.h>

TRACE_EVENT(kd_trace_event,
	TP_PROTO(int number),
	TP_ARGS(number),
	TP_STRUCT__entry(__field(int, number)),
	TP_fast_assign(__entry->number = number;),
	TP_printk("number=%d", __entry->number)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE kd_trace
#include <trace/define_trace.h>
