"""One explanation per thing: class docstrings are filled from where each one is written."""

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import TypeVar

_Class = TypeVar("_Class", bound=type)
_HEADING = r"^{}\n-{{3,}}\n(.*?)(?=\n\n?[^\n]+\n-{{3,}}\n|\Z)"


def section(documented: type, heading: str) -> str:
    """Return the text of a numpydoc section of a class's own docstring, or ``""``."""
    text = inspect.cleandoc(documented.__dict__.get("__doc__") or "")
    found = re.search(_HEADING.format(heading), text, flags=re.DOTALL | re.MULTILINE)
    return found.group(1).rstrip() if found else ""


def parameter_docs(documented: type) -> dict[str, str]:
    """Return ``name -> text`` of the Parameters sections of a class and its bases.

    The text is the entry as written: the line ``name : type`` and its indented explanation.
    """
    entries: dict[str, str] = {}
    for cls in documented.__mro__:
        for entry in re.split(r"\n(?=\S)", section(cls, "Parameters")):
            entries.setdefault(entry.split("\n")[0].split(" : ")[0].strip(), entry)
    entries.pop("", None)
    return entries


def document(*sources: type) -> Callable[[_Class], _Class]:
    """Fill the docstring of an estimator class from those of its config and its bases.

    ``{parameters}`` becomes one entry per constructor argument, in the order of the signature,
    from the Parameters sections of ``sources``; an argument that no source explains is an error
    at import. ``{method}`` and ``{references}`` become the description and the References section
    of the last source, the method's config.
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
        description = inspect.cleandoc(sources[-1].__doc__ or "").split("\nParameters\n")[0]
        texts = {
            "parameters": "\n".join(known[name] for name in names),
            "method": description.partition("\n\n")[2].strip(),
            "references": section(sources[-1], "References"),
        }
        for marker, text in texts.items():
            indented = textwrap.indent(text, " " * 4).strip()
            cls.__doc__ = cls.__doc__.replace("{" + marker + "}", indented)
        return cls

    return fill
