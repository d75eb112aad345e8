"""The user-space side of module loading: modinfo, the module index, modprobe.d and modprobe, as kmod 30 has them."""
