"""A second oracle: the same kernels under QEMU, which shares no code with our machine.

:mod:`tests.oracle.catalogue` lists cases: sequences of system calls. QEMU runs each of them in a copy of a booted machine
(:mod:`tests.oracle.qemu`), as does our machine, by our loader and natively (:mod:`tests.oracle.emulated`).
``make oracle`` compares all three answers and keeps QEMU's as test data, by kernel release (:mod:`tests.oracle.records`).
"""
