"""One explanation per parameter: class docstrings are filled from where each one is written."""

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import TypeVar

_Class = TypeVar("_Class", bound=type)
_MARKER = "{parameters}"


def parameter_docs(documented: type) -> dict[str, str]:
    """Return ``name -> text`` of the numpydoc Parameters sections of a class and its bases.

    The text is the entry as written: the line ``name : type`` and its indented explanation.
    """
    entries: dict[str, str] = {}
    for cls in documented.__mro__:
        section = re.search(
            r"^Parameters\n-{3,}\n(.*?)(?=\n\n?[^\n]+\n-{3,}\n|\Z)",
            inspect.cleandoc(cls.__dict__.get("__doc__") or ""),
            flags=re.DOTALL | re.MULTILINE,
        )
        if section is None:
            continue
        for entry in re.split(r"\n(?=\S)", section.group(1).rstrip()):
            entries.setdefault(entry.splitlines()[0].split(" : ")[0].strip(), entry)
    return entries


def document_parameters(*sources: type) -> Callable[[_Class], _Class]:
    """Fill ``{parameters}`` in a class docstring with one entry per constructor argument.

    The entries are taken from the Parameters sections of ``sources``, in the order of the
    signature; a constructor argument that no source explains is an error at import.
    """

    def fill(cls: _Class) -> _Class:
        if cls.__doc__ is None:  # python -OO strips docstrings
            return cls
        known: dict[str, str] = {}
        for source in sources:
            known = {**parameter_docs(source), **known}
        accepted = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
        names = [p.name for p in accepted if p.name != "self" and p.kind != p.VAR_KEYWORD]
        names += ["**kwargs"] if any(p.kind == p.VAR_KEYWORD for p in accepted) else []
        missing = [name for name in names if name not in known]
        if missing:
            raise TypeError(f"{cls.__name__}: no source explains the parameters {missing}.")
        text = textwrap.indent("\n".join(known[name] for name in names), " " * 4)
        cls.__doc__ = cls.__doc__.replace(_MARKER, text.strip())
        return cls

    return fill
