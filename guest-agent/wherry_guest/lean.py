"""`dataclasses` without `inspect`, for the two processes that stay in the guest's memory.

The standard library's `dataclasses` imports `inspect`, and with it the parser's tree, the
disassembler and the tokenizer: 1.3 MB and a tenth of a boot's imports for two functions, of which
one only writes a docstring. Here it finds a small module in its place, which hands everything else
on to the real one. Rule: what `dataclasses` makes is the same, but for the text of a class's
docstring where its author gave none.
"""

from __future__ import annotations

import sys
from typing import Any

_REAL = "inspect"


def import_dataclasses() -> None:
    """Import `dataclasses`, if nobody has, without `inspect`; later imports get the real one."""
    if "dataclasses" in sys.modules or _REAL in sys.modules:
        return
    sys.modules[_REAL] = module = _stand_in()
    try:
        import dataclasses  # noqa: F401 - here: it is the import that counts
    finally:
        _withdraw(module)


def _stand_in() -> Any:
    module: Any = type(sys)(_REAL)
    module.signature = _signature
    module.get_annotations = _get_annotations

    def real(name: str) -> Any:
        _withdraw(module)
        import inspect  # here: that is the point

        return getattr(inspect, name)

    module.__getattr__ = real  # PEP 562
    return module


def _withdraw(module: Any) -> None:
    if sys.modules.get(_REAL) is module:
        del sys.modules[_REAL]


def _signature(_class: object) -> str:
    """For a class without a docstring; `dataclasses` then writes its name alone."""
    raise ValueError("nobody reads it here")


def _get_annotations(of: type) -> dict[str, Any]:
    """A class's own, as the real one without `eval_str` gives them."""
    return dict(of.__dict__.get("__annotations__") or {})  # noqa: RUF063 - it is what is spared
