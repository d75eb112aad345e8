"""``dkms.conf`` by DKMS's rules (``dkms: read_conf``, ``prepare_build``, ``actual_build``).

It is a shell script, which may ask the kernel's configuration and decide by it. So bash evaluates it, in the
sandbox, for each kernel anew, and writes down what the variables are then. The same script compares what bash's
regular expressions decide: ``MAKE_MATCH``, ``PATCH_MATCH``, ``BUILD_EXCLUSIVE_*``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from kodojo.errors import InputError

__all__ = ["BUILD", "CLEAN", "EVALUATE", "MAKE", "Conf", "Record", "read_answers"]

_NAME = re.compile(r"[A-Za-z0-9_][\w.+~:,@-]{0,127}", re.ASCII)
_LOCATION = re.compile(r"[\w.+~:,@/ -]{0,500}", re.ASCII)
_MOST_MODULES = 1000

# What a package without commands of its own gets; variables of the script that builds.
MAKE = 'make -C "$kernel_source_dir" M="$build"'
CLEAN = f"{MAKE} clean"

# Arguments: dkms.conf, the file for the answers. The variables that dkms.conf may use are in the environment.
EVALUATE = r"""
conf=$1 answers=$2
export -n kernelver arch kernel_source_dir dkms_tree source_tree
unset CLEAN MAKE MAKE_MATCH PATCH PATCH_MATCH PRE_BUILD POST_BUILD PACKAGE_NAME PACKAGE_VERSION \
    BUILT_MODULE_NAME BUILT_MODULE_LOCATION DEST_MODULE_NAME DEST_MODULE_LOCATION BUILD_DEPENDS \
    BUILD_EXCLUSIVE_KERNEL BUILD_EXCLUSIVE_KERNEL_MIN BUILD_EXCLUSIVE_KERNEL_MAX BUILD_EXCLUSIVE_ARCH \
    BUILD_EXCLUSIVE_CONFIG
: > "$answers"
. "$conf" > /dev/null
exec 3> "$answers"
say() { printf '%s\0' "$@" >&3; }
for name in PACKAGE_NAME PACKAGE_VERSION CLEAN PRE_BUILD POST_BUILD; do
    say "$name" 0 "${!name}"
done
for name in BUILT_MODULE_NAME BUILT_MODULE_LOCATION DEST_MODULE_NAME DEST_MODULE_LOCATION BUILD_DEPENDS; do
    declare -n values=$name
    for index in "${!values[@]}"; do say "$name" "$index" "${values[$index]}"; done
done
[[ ${MAKE_MATCH[0]} ]] || command=${MAKE[0]}
for index in "${!MAKE[@]}"; do
    if [[ ${MAKE[$index]} && ${MAKE_MATCH[$index]} && $kernelver =~ ${MAKE_MATCH[$index]} ]]; then
        command=${MAKE[$index]}
    fi
done
say MAKE 0 "$command"
for index in "${!PATCH[@]}"; do
    if [[ ${PATCH[$index]} && ( ! ${PATCH_MATCH[$index]} || $kernelver =~ ${PATCH_MATCH[$index]} ) ]]; then
        say PATCH "$index" "${PATCH[$index]}"
    fi
done
exclude() { say EXCLUDED "$1" "$2"; }
in_order() { printf '%s\n' "$@" | sort -V -C; }
[[ $BUILD_EXCLUSIVE_KERNEL && ! $kernelver =~ $BUILD_EXCLUSIVE_KERNEL ]] &&
    exclude BUILD_EXCLUSIVE_KERNEL "$BUILD_EXCLUSIVE_KERNEL"
[[ $BUILD_EXCLUSIVE_KERNEL_MIN ]] && ! in_order "$BUILD_EXCLUSIVE_KERNEL_MIN" "$kernelver" &&
    exclude BUILD_EXCLUSIVE_KERNEL_MIN "$BUILD_EXCLUSIVE_KERNEL_MIN"
[[ $BUILD_EXCLUSIVE_KERNEL_MAX ]] && ! in_order "$kernelver" "$BUILD_EXCLUSIVE_KERNEL_MAX" &&
    exclude BUILD_EXCLUSIVE_KERNEL_MAX "$BUILD_EXCLUSIVE_KERNEL_MAX"
[[ $BUILD_EXCLUSIVE_ARCH && ! $arch =~ $BUILD_EXCLUSIVE_ARCH ]] &&
    exclude BUILD_EXCLUSIVE_ARCH "$BUILD_EXCLUSIVE_ARCH"
config=$kernel_source_dir/.config
if [[ $BUILD_EXCLUSIVE_CONFIG && -e $config ]]; then
    for option in $BUILD_EXCLUSIVE_CONFIG; do
        case $option in
            !*) grep -qE "^${option#!}=[ym]" "$config" && exclude BUILD_EXCLUSIVE_CONFIG "$option" ;;
            *) grep -qE "^$option=[ym]" "$config" || exclude BUILD_EXCLUSIVE_CONFIG "$option" ;;
        esac
    done
fi
say END 0 ""
exit 0
"""

# Arguments: the source, the directory to build in, how many jobs; from then on what the environment has.
BUILD = r"""
source=$1 build=$2 jobs=$3
export -n kernelver arch kernel_source_dir dkms_tree source_tree \
    make_command clean_command patches pre_build post_build  # none of it is for make
mkdir -p "$(dirname "$build")" && cp -a "$source" "$build" && cd "$build" || exit 1
[[ -e ${build%/*}/source ]] || ln -s "$source" "${build%/*}/source"
while IFS= read -r patch; do
    [[ $patch ]] || continue
    echo "# patch -p1 < patches/$patch"
    patch -p1 < "patches/$patch" || { echo "error: patch $patch cannot be applied"; exit 1; }
done <<< "$patches"
script() {
    [[ $1 ]] || return 0
    if [[ -x ./${1%% *} ]]; then
        echo "# ./$1"
        ( exec ./$1 )
    else
        echo "# $1 is not executable: it is left out, as DKMS does"
    fi
}
script "$pre_build"
( eval "$clean_command" ) > /dev/null 2>&1
command=${make_command/#make/make -j$jobs KERNELRELEASE=$kernelver}
echo "# $command"
( eval "{ $command
}" ) || exit
script "$post_build"
exit 0
"""


class Record(NamedTuple):
    """A module that a package says it builds.

    :param built: its name where it is built, without a suffix. :param location: in which directory.
    :param name: as it would be installed.
    """

    built: str
    location: str
    name: str


class Conf(NamedTuple):
    """What a ``dkms.conf`` says for one kernel.

    :param make, clean: commands. :param patches: names below ``patches/``.
    :param before, after: PRE_BUILD and POST_BUILD.
    :param excluded: why the package does not want to be built for this kernel; empty if it does.
    """

    name: str
    version: str
    modules: tuple[Record, ...]
    make: str
    clean: str
    patches: tuple[str, ...] = ()
    before: str = ""
    after: str = ""
    excluded: str = ""

    def variables(self) -> dict[str, str]:
        """For the script that builds."""
        return {
            "make_command": self.make,
            "clean_command": self.clean,
            "patches": "\n".join(self.patches),
            "pre_build": self.before,
            "post_build": self.after,
        }


def read_answers(data: bytes) -> Conf:
    """What the script wrote down.

    :raises InputError: dkms.conf lacks what DKMS demands.
    """
    words = data.decode("utf-8", "replace").split("\0")
    values: dict[str, dict[int, str]] = {}
    excluded = []
    for name, index, value in zip(words[0::3], words[1::3], words[2::3], strict=False):
        if name == "EXCLUDED":
            excluded.append(f'{index}="{value}"')
        elif index.isdecimal() and int(index) < _MOST_MODULES:
            values.setdefault(name, {})[int(index)] = value
    if "END" not in values:
        raise InputError("dkms.conf: its evaluation did not come to its end")

    def one(name: str) -> str:
        return values.get(name, {}).get(0, "")

    name, version = one("PACKAGE_NAME"), one("PACKAGE_VERSION")
    for what, text in (("PACKAGE_NAME", name), ("PACKAGE_VERSION", version)):
        if not _NAME.fullmatch(text):
            raise InputError(f"dkms.conf: {what} is {text!r}" if text else f"dkms.conf: it has no {what}")
    return Conf(
        name,
        version,
        _records(values, name),
        one("MAKE") or MAKE,
        one("CLEAN") or CLEAN,
        tuple(_relative(text) for _, text in sorted(values.get("PATCH", {}).items())),
        one("PRE_BUILD"),
        one("POST_BUILD"),
        ", ".join(excluded),
    )


def _records(values: Mapping[str, Mapping[int, str]], package: str) -> tuple[Record, ...]:
    names = ("BUILT_MODULE_NAME", "BUILT_MODULE_LOCATION", "DEST_MODULE_NAME", "DEST_MODULE_LOCATION")
    size = max((len(values.get(name, {})) for name in names), default=0)
    found = []
    for index in range(size):
        built, location, installed = (values.get(name, {}).get(index, "") for name in names[:3])
        if not built and len(values.get("DEST_MODULE_LOCATION", {})) == 1:
            built = package
        if not _NAME.fullmatch(built):
            raise InputError(f"dkms.conf: no BUILT_MODULE_NAME for record #{index}")
        if built.endswith((".o", ".ko")):
            raise InputError(f"dkms.conf: BUILT_MODULE_NAME ends in '.o' or '.ko' in record #{index}")
        name = installed if _NAME.fullmatch(installed) else built
        found.append(Record(built, _relative(location), name))
    if not found:
        raise InputError("dkms.conf: it names no module: no BUILT_MODULE_NAME and no DEST_MODULE_LOCATION")
    return tuple(found)


def _relative(path: str) -> str:
    """A path below the directory of the build, or an error."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or not _LOCATION.fullmatch(path):
        raise InputError(f"dkms.conf: leads out of the package: {path!r}")
    return "/".join(parts)
