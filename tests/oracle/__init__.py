"""A second oracle: the same kernels under QEMU, which shares no code with our machine.

:mod:`tests.oracle.catalogue` lists cases: sequences of system calls. QEMU makes each of them in a copy of a booted
machine (:mod:`tests.oracle.qemu`), and so does our machine, by our loader and natively
(:mod:`tests.oracle.emulated`). Most cases are about loaders; those of :mod:`tests.oracle.machine` are about what is
the same for both of ours, the machine itself.
``make oracle`` compares the three answers and keeps QEMU's as test data, one file for each kernel release
(:mod:`tests.oracle.records`), which ``make test`` compares our loader with (test_recorded.py).
"""
