"""Adapters: what a concept changes in a frozen base while it is in use; one file each, found by its name.

A file `relinv/adapters/NAME.py` holds one class `Adapter`, a `ConceptAdapter`, whose parts relinv/diffusion/adapter.py
tells. No list names them.
"""
