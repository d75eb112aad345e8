// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Asks the kernel for a firmware file in its init.
 *
 * Expected: loads in any case. Prints "kd_firmware: size=N sum=M" (of all bytes of /lib/firmware/kd/blob.bin), or
 * "kd_firmware: error=-2" where there is no such file (the kernel's own line comes first).
 */
#include <linux/device.h>
#include <linux/err.h>
#include <linux/firmware.h>
#include <linux/init.h>
#include <linux/module.h>

static struct device *device;

static int __init kd_firmware_init(void)
{
	const struct firmware *firmware;
	unsigned int sum = 0;
	size_t at;
	int error;

	device = root_device_register("kd_firmware");
	if (IS_ERR(device))
		return PTR_ERR(device);
	error = request_firmware(&firmware, "kd/blob.bin", device);
	if (error) {
		pr_info("kd_firmware: error=%d\n", error);
		return 0;
	}
	for (at = 0; at < firmware->size; at++)
		sum += firmware->data[at];
	pr_info("kd_firmware: size=%zu sum=%u\n", firmware->size, sum);
	release_firmware(firmware);
	return 0;
}

static void __exit kd_firmware_exit(void)
{
	root_device_unregister(device);
}

module_init(kd_firmware_init);
module_exit(kd_firmware_exit);
MODULE_DESCRIPTION("Wants firmware");
MODULE_FIRMWARE("kd/blob.bin");
MODULE_LICENSE("GPL");
