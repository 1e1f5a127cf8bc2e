"""Adapters: what a concept changes in a frozen base while it is in use; one file each, found by name.

A file `relinv/adapters/NAME.py` holds one class `Adapter`, a `ConceptAdapter` (see relinv/diffusion/adapter.py). There
is no list of them to update.
"""
