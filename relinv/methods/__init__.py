"""Inversion methods: one file each, found by name; all are trained by the one loop in relinv/learning/training.py.

A file `relinv/methods/NAME.py` holds two classes: `Settings`, the section `invert.NAME` of params.yaml, and `Method`,
an `InversionMethod` (see relinv/learning/method.py). There is no list of them to update. Methods never import each
other: what two of them share is in a module of relinv/learning, such as token_row.py.
"""
