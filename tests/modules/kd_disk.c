// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A disk in memory whose partitions are looked for when it is added, in init.
 *
 * Expected: /dev/kd_disk has `sectors` (2048) sectors of zeroes that can be read and written. The module can be
 * removed at once: what the search for partitions has opened is closed when the load returns to user space.
 */
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

static int sectors = 2048;
module_param(sectors, int, 0444);
MODULE_PARM_DESC(sectors, "how large the disk is");

static int major;
static void *content;
static struct gendisk *disk;
static struct blk_mq_tag_set tags;

static blk_status_t kd_disk_request(struct blk_mq_hw_ctx *hctx, const struct blk_mq_queue_data *data)
{
	struct request *request = data->rq;
	loff_t at = blk_rq_pos(request) << SECTOR_SHIFT;
	struct req_iterator iterator;
	struct bio_vec part;

	blk_mq_start_request(request);
	rq_for_each_segment(part, request, iterator) {
		void *buffer = page_address(part.bv_page) + part.bv_offset;

		if (at + part.bv_len > (loff_t)sectors << SECTOR_SHIFT) {
			blk_mq_end_request(request, BLK_STS_IOERR);
			return BLK_STS_OK;
		}
		if (rq_data_dir(request) == WRITE)
			memcpy(content + at, buffer, part.bv_len);
		else
			memcpy(buffer, content + at, part.bv_len);
		at += part.bv_len;
	}
	blk_mq_end_request(request, BLK_STS_OK);
	return BLK_STS_OK;
}

static const struct blk_mq_ops operations = {
	.queue_rq = kd_disk_request,
};

static const struct block_device_operations files = {
	.owner = THIS_MODULE,
};

static int __init kd_disk_init(void)
{
	int error = -ENOMEM;

	content = vzalloc((size_t)sectors << SECTOR_SHIFT);
	if (!content)
		return -ENOMEM;
	major = register_blkdev(0, "kd_disk");
	if (major < 0) {
		error = major;
		goto free_content;
	}
	tags.ops = &operations;
	tags.nr_hw_queues = 1;
	tags.queue_depth = 16;
	tags.numa_node = NUMA_NO_NODE;
	tags.flags = 0;
	error = blk_mq_alloc_tag_set(&tags);
	if (error)
		goto unregister;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 9, 0)
	disk = blk_mq_alloc_disk(&tags, NULL, NULL);
#else
	disk = blk_mq_alloc_disk(&tags, NULL);
#endif
	if (IS_ERR(disk)) {
		error = PTR_ERR(disk);
		goto free_tags;
	}
	disk->major = major;
	disk->minors = 8;
	disk->fops = &files;
	snprintf(disk->disk_name, sizeof(disk->disk_name), "kd_disk");
	set_capacity(disk, sectors);
	error = add_disk(disk);
	if (!error)
		return 0;
	put_disk(disk);
free_tags:
	blk_mq_free_tag_set(&tags);
unregister:
	unregister_blkdev(major, "kd_disk");
free_content:
	vfree(content);
	return error;
}

static void __exit kd_disk_exit(void)
{
	del_gendisk(disk);
	put_disk(disk);
	blk_mq_free_tag_set(&tags);
	unregister_blkdev(major, "kd_disk");
	vfree(content);
}

module_init(kd_disk_init);
module_exit(kd_disk_exit);
MODULE_DESCRIPTION("A disk whose partitions are looked for");
MODULE_LICENSE("GPL");
