"""Imports every module of ours and says which failed; runs on (Wine's) Windows."""

from __future__ import annotations

import importlib
import pkgutil

failed = []
count = 0
for root in ("wherry", "wherry_guest", "wherry_image"):
    package = importlib.import_module(root)
    for module in pkgutil.walk_packages(package.__path__, f"{root}."):
        if not module.name.endswith("__main__"):
            count += 1
            try:
                importlib.import_module(module.name)
            except Exception as error:  # noqa: BLE001  # each is reported
                failed.append(f"{module.name}: {type(error).__name__}: {error}")
print(f"{count} modules, {len(failed)} failed", *failed, sep="\n")
