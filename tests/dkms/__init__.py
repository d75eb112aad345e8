"""Debian's DKMS packages through ``kodojo check --build``: which of them build, and whether what they build loads.

``python -m tests.dkms --kernel 6.1.0-56-amd64 --kernel 6.12.111+deb12-amd64`` fetches the packages by name (apt, as
the machine has it), builds each for each kernel of the store, and writes ``results/dkms.json`` and ``docs/dkms.md``.
``python -m tests.dkms --page`` writes the page anew from the results.
"""
