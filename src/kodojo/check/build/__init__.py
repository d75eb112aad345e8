"""Modules from their sources: DKMS packages and directories, built for each kernel in a sandbox.

``sources.py`` recognises them, ``headers.py`` finds what they are built against, ``compiler.py`` what they are built
with, ``dkms.py`` reads ``dkms.conf`` by DKMS's rules, ``sandbox.py`` runs what nobody vouches for, ``complaints.py``
reads what it printed, ``keep.py`` keeps what was built, and ``build.py`` does it all for sources times kernels.
"""
