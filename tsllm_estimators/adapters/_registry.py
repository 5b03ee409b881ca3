"""How a method becomes one of PEFT's own."""

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.utils import PeftType, register_peft_method


def register(name: str, config_cls: type, model_cls: type) -> None:
    """Register a method with PEFT, under its config, tuner and prefix.

    PEFT keeps its methods in a closed enumeration, and its registration refuses a name that is not
    in it; so the name is added to the enumeration first. Everything after that is PEFT's own:
    ``get_peft_model``, ``PeftModel.from_pretrained`` and transformers' ``load_adapter`` find the
    method by the name in ``adapter_config.json``, once this package is imported.

    Raises
    ------
    KeyError
        If somebody else registered a method of this name.
    """
    _add_member(name.upper())
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(name.upper())
    if known is not None and _path(known) == _path(config_cls):  # our module was reloaded
        for mapping in (
            PEFT_TYPE_TO_CONFIG_MAPPING,
            PEFT_TYPE_TO_PREFIX_MAPPING,
            PEFT_TYPE_TO_TUNER_MAPPING,
        ):
            del mapping[name.upper()]
    register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)


def _add_member(name: str) -> None:
    """Add ``name`` to PEFT's enumeration of methods, as its class body would have."""
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(PeftType)
    type.__setattr__(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member


def _path(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__
