"""Do the parts of a description belong together? Sentences about those that do not, and about what is missing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from kodojo.errors import UnmodelledError, decode
from kodojo.image.architecture import architecture_named, architecture_of_config
from kodojo.image.described.files import DescriptionFiles, read_small
from kodojo.image.described.release import Release, version_of
from kodojo.image.exports import VMLINUX

if TYPE_CHECKING:
    from kodojo.image.config import Config
    from kodojo.image.exports import Exports

__all__ = ["contradictions"]

_CONFIG_VERSION = re.compile(rb"^# Linux/\S+ (\S+) Kernel Configuration", re.MULTILINE)
_MACHINE = re.compile(rb'^#define\s+UTS_MACHINE\s+"(\w+)"', re.MULTILINE)

# Option -> a symbol that its code has exported for ages: by the kernel itself if it is y, by a module if it is m.
_OWNED = {
    "USB": "usb_register_driver", "SCSI": "scsi_host_alloc", "ATA": "ata_host_activate", "HID": "hid_add_device",
    "SND": "snd_card_new", "DRM": "drm_dev_register", "CFG80211": "wiphy_register", "BT": "hci_register_dev",
    "MAC80211": "ieee80211_register_hw", "I2C": "i2c_add_adapter", "MMC": "mmc_add_host", "MII": "mii_link_ok",
    "IPV6": "inet6_register_protosw", "JBD2": "jbd2_journal_start", "FAT_FS": "fat_fill_super", "NLS": "load_nls",
    "BLK_DEV_MD": "md_register_thread", "NF_CONNTRACK": "nf_conntrack_alloc", "SUNRPC": "rpc_run_task",
    # What releases and distributions decide in different ways, or what came or went with one.
    "ZSTD_COMPRESS": "zstd_cctx_workspace_bound", "ZSMALLOC": "zs_compact", "CRC_T10DIF": "crc_t10dif",
    "CRC64": "crc64_be", "TEE": "tee_bus_type", "DAX": "__dax_driver_register", "NVME_AUTH": "nvme_auth_alloc_key",
    "NVME_KEYRING": "nvme_keyring_id", "NLS_UCS2_UTILS": "NlsUniUpperRange", "LIBETH": "libeth_rx_fq_create",
    "VIDEOBUF_DMA_SG": "videobuf_dma_free",
}  # fmt: skip


def contradictions(
    files: DescriptionFiles,
    release: Release,
    config: Config,
    generated: Config,
    exports: Exports,
    module_exports: Exports,
) -> list[str]:
    """Compare all with all.

    :param generated: ``auto.conf``; empty without.
    """
    return [
        *_about_release(files, release, config),
        *_about_architecture(files, config),
        *_about_config(files, config, generated),
        *_about_exports(files, config, exports, module_exports),
    ]


def _about_release(files: DescriptionFiles, release: Release, config: Config) -> Iterator[str]:
    if not release.certain:
        yield (
            "neither include/generated/utsrelease.h nor include/config/kernel.release is there:"
            " version magic cannot be compared; build or install the headers completely (make modules_prepare)"
        )
        return
    version = version_of(release.name)
    # Debian's kernel.release has another third number than its releases; the first two are the same.
    if release.kernel_release and version_of(release.kernel_release) != version:
        yield (
            f"utsrelease.h says {release.name}, kernel.release says {release.kernel_release}:"
            " one of them is of another build"
        )
    noted = _CONFIG_VERSION.search(read_small(files.config)) if files.config else None
    if noted is not None and version_of(decode(noted[1])) != version:
        yield f"configuration: made for Linux {decode(noted[1])}, but the release is {release.name}"
    local = config.get("CONFIG_LOCALVERSION", "")
    if local and local not in release.name:
        yield f"configuration: says CONFIG_LOCALVERSION={local}, but the release is {release.name}"


def _about_architecture(files: DescriptionFiles, config: Config) -> Iterator[str]:
    if not config:
        return
    architecture = architecture_of_config(config)
    if architecture is None:
        yield "configuration: for no architecture that kodojo knows"
        return
    machine = _MACHINE.search(read_small(files.directory / "include/generated/compile.h"))
    if machine is None:
        return
    named = decode(machine[1])
    with suppress(UnmodelledError):
        named = architecture_named(named).name
    if named != architecture.name:
        yield f"compile.h is of a build for {named}, the configuration is for {architecture.name}"


def _about_config(files: DescriptionFiles, config: Config, generated: Config) -> Iterator[str]:
    if not config:
        yield "no .config is there: what depends on options is taken as distributions have it"
        return
    if not files.config or not generated:
        return
    changed = sorted(name for name in {*config, *generated} if _differ(config.get(name), generated.get(name)))
    if changed:
        shown = ", ".join(changed[:3]) + (" ..." if len(changed) > 3 else "")
        yield (
            f"configuration: differs in {len(changed)} options from auto.conf ({shown}):"
            " it was changed after the last build"
        )


def _differ(one: str | None, other: str | None) -> bool:
    """Texts are quoted in one and not always in the other; what decides something here is y, m or nothing."""
    return one != other and (one in ("y", "m", None) or other in ("y", "m", None))


def _about_exports(
    files: DescriptionFiles, config: Config, exports: Exports, module_exports: Exports
) -> Iterator[str]:
    if not exports:
        yield f"{files.symvers.name}: lists nothing that the kernel itself exports: vmlinux was not built"
    if not config:
        return
    crcs = exports.has_crcs() or module_exports.has_crcs()
    if config.enabled("MODVERSIONS") and exports and not crcs:
        yield f"{files.symvers.name}: has no checksums (CRCs), but the configuration has CONFIG_MODVERSIONS=y"
    if not config.enabled("MODVERSIONS") and crcs:
        yield f"{files.symvers.name}: has checksums (CRCs), but the configuration has no CONFIG_MODVERSIONS"
    if exports and not module_exports and "m" in config.values():
        yield f"{files.symvers.name}: lists nothing that modules export: only vmlinux was built"
    yield from _about_owners(files, config, exports, module_exports)


def _about_owners(
    files: DescriptionFiles, config: Config, exports: Exports, module_exports: Exports
) -> Iterator[str]:
    wrong = []
    for option, symbol in _OWNED.items():
        listed = exports.get(symbol) or module_exports.get(symbol)
        value = config.get(f"CONFIG_{option}")
        if listed is not None and value != ("y" if listed.owner == VMLINUX else "m"):
            wrong.append(f"{symbol} is exported by {listed.owner} and CONFIG_{option} is {value or 'not set'}")
    if wrong:
        yield f"{files.symvers.name}: of another build than the configuration: {'; '.join(wrong[:3])}"
