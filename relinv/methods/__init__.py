"""Inversion methods: one file each, found by its name; all are learned by the one loop of relinv/learning/training.py.

A file `relinv/methods/NAME.py` holds two classes: `Settings`, the section `invert.NAME` of params.yaml, and `Method`,
an `InversionMethod`, whose parts relinv/learning/method.py tells. No list names them. Methods never import each other:
what two of them share is a module of relinv/learning, such as token_row.py.
"""
