"""Plugins: every module of a package is one, found by its file name, so that adding one needs no edit elsewhere."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from relinv.errors import unknown


def plugin_names(package: str) -> list[str]:
    """Return the names of a package's plugins in alphabetical order; `_name.py` is private and left out."""
    folders = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(folders) if not module.name.startswith("_"))


def find_plugin(package: str, name: str) -> ModuleType:
    """Return the plugin `name` of a package such as "relinv.methods", imported.

    Raises UserError with the closest name if there is none. An error inside the plugin is raised unchanged.
    """
    names = plugin_names(package)
    if name not in names:
        raise unknown(package.rpartition(".")[2].removesuffix("s"), name, names)
    return importlib.import_module(f"{package}.{name}")
