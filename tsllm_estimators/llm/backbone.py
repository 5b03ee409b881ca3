"""Layers of a language model: what is frozen, what trains, what is shared and what is saved.

A backbone is the stack of Transformer layers of a Hugging Face text model, fed with vectors
(``inputs_embeds``) in place of words. Two rules keep many estimators cheap and apart:

* frozen tensors share the storage of the process's one pristine copy;
* every tensor that may train is a copy of its own, and only those and the adapter's are in a
  ``state_dict``: the rest is rebuilt from the model's name and compared with a fingerprint.
"""

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsllm_estimators.llm.fine_tuning import ADAPTER, inject_adapter
from tsllm_estimators.llm.pristine import (
    DEFAULT_BACKBONE,
    Pristine,
    pristine,
    request_for,
    source_of,
)
from tsllm_estimators.llm.stand_ins import STAND_INS
from tsllm_estimators.llm.tokens import token_ids

__all__ = ["DEFAULT_BACKBONE", "Backbone", "load_backbone"]

_ADAPTER_FILE = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."


def load_backbone(
    backbone: str,
    *,
    layers: int | None = None,
    default_layers: int | None = None,
    weights: str = "pretrained",
    causal: bool | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> "Backbone":
    """Return the first layers of a language model, frozen.

    Parameters
    ----------
    backbone : str
        A Hugging Face id, a local directory, ``"tiny"`` or one of ``STAND_INS``.
    layers : int, optional
        Keep this many of its first layers.
    default_layers : int, optional
        As ``layers``, when that is None and the model has more.
    weights : {"pretrained", "random"}
        Random weights are drawn anew from the model's config, with ``kwargs["seed"]`` (0).
    causal : bool, optional
        Override the direction of attention; None keeps the model's own.
    kwargs : mapping, optional
        Further arguments of ``AutoModel.from_pretrained``: ``revision``, ``dtype``,
        ``quantization_config``, ``attn_implementation``, ``local_files_only``... For a stand-in
        ``hidden_size`` (384) and ``num_attention_heads`` (12).

    Raises
    ------
    OSError
        If the model cannot be had; the message names the ways out.
    ValueError
        If an argument does not fit the model.
    """
    request = request_for(backbone, layers, default_layers, weights, causal, kwargs)
    return Backbone(pristine(request))


class Backbone(nn.Module):
    """Transformer layers that map token vectors to token vectors.

    Made by :func:`load_backbone`. Until :meth:`prepare` is called everything is frozen.

    Attributes
    ----------
    width : int
        Width d of the token vectors.
    n_heads : int
        Attention heads of the model's own layers.
    n_levels : int
        Hidden states that ``forward(..., levels=True)`` returns: layers + 1.
    word_embeddings : Tensor or None
        The frozen word embeddings, shape (V, d); None after :meth:`release_word_embeddings`.
    """

    def __init__(self, source: Pristine) -> None:
        super().__init__()
        self.name = source.request.backbone
        self.width = source.width
        self.n_heads = source.n_heads
        self.n_levels = source.n_levels
        self.is_stand_in = self.name in STAND_INS
        self.word_embeddings: Tensor | None = source.word_embeddings
        self.model = _share(source.model)
        self._positions = position_names(self.model)
        # the likes of RoBERTa count positions from after the padding's
        padding = [module.padding_idx for module in self._position_embeddings()]
        self._first_position = padding[0] + 1 if padding and padding[0] is not None else 0
        self._fingerprint = source.fingerprint
        self._request = source.request
        self._frozen: frozenset[str] = frozenset()
        self._rebuilt: frozenset[str] = frozenset()  # the frozen ones that the name brings back
        self._register_frozen()
        self.register_state_dict_post_hook(_drop_frozen)
        self.register_load_state_dict_pre_hook(_fill_frozen)

    def prepare(
        self,
        n_tokens: int,
        *,
        adapter: Any = None,
        layer_norms: bool = False,
        position_embeddings: bool = False,
        stand_in: bool = True,
    ) -> "Backbone":
        """Choose what trains, for sequences of ``n_tokens`` tokens; returns itself.

        Parameters
        ----------
        n_tokens : int
            Length of the token sequence; where position embeddings train, those beyond it are
            dropped.
        adapter : "full", PEFT config, dict or None
            ``"full"`` trains every weight; a PEFT config (or its ``to_dict()``) is injected; None
            leaves the weights as they are.
        layer_norms, position_embeddings : bool
            Train these parts of the model itself as well.
        stand_in : bool
            Whether a stand-in for the language model trains (it has no pretrained weights that
            an adapter could adapt).

        Raises
        ------
        ValueError
            If the model cannot take ``n_tokens`` tokens, or nothing in it fits the adapter.
        """
        self.check_positions(n_tokens)
        if self.is_stand_in:
            self.model.requires_grad_(stand_in)
        elif adapter == "full":
            self.model.requires_grad_(True)
        elif adapter is not None:
            inject_adapter(self.model, adapter)
        for module in self.model.modules():
            if layer_norms and _is_layer_norm(module):
                module.requires_grad_(True)
        if position_embeddings:
            for module in self._position_embeddings():
                _cut_positions(module, n_tokens + self._first_position)
                module.requires_grad_(True)
        words = self.model.get_input_embeddings()  # type: ignore[operator]
        words.requires_grad_(False)  # a place holder
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.clone()
        self._register_frozen()
        return self

    def forward(
        self, tokens: Tensor, levels: bool = False, positions: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the last hidden state of ``tokens`` (b, s, d), or with ``levels`` all of them.

        Levels are the states after the embedding and after each layer, the last one as the model
        returns it (decoders apply their final norm to it). ``positions`` (s,) are the tokens'
        places in the sequence, from 0, where these are not just one after another.
        """
        own = next(self.model.parameters(), tokens).dtype
        extra = {}
        if positions is not None and not self.is_stand_in:  # stand-ins know no positions
            extra["position_ids"] = (positions + self._first_position).expand(len(tokens), -1)
            # without a mask transformers would take positions that do not count on for those of
            # several sequences side by side, which do not see each other
            extra["attention_mask"] = torch.ones_like(extra["position_ids"])
        output = self.model(inputs_embeds=tokens.to(own), output_hidden_states=levels, **extra)
        if levels:
            return tuple(state.to(tokens.dtype) for state in output.hidden_states)
        return output.last_hidden_state.to(tokens.dtype)

    @property
    def has_router(self) -> bool:
        """Whether D-LoRA has put routers on the layers."""
        configs = getattr(self.model, "peft_config", {}).values()
        return any(c.peft_type == "DYNALORA" and c.top_n is not None for c in configs)

    def record_routing(self) -> AbstractContextManager[Any]:
        """Record what the routers of D-LoRA decide while the context is open."""
        from tsllm_estimators.adapters import record_routing

        return record_routing()

    def embed_text(self, text: str) -> Tensor:
        """Return the word embeddings of a text's tokens, shape (n_tokens, d), in the model's dtype.

        The text does not run through the layers and is cut to no length. Special tokens are those
        that the tokenizer adds, so that an empty text has some, or no token at all.

        Raises
        ------
        OSError
            If the model's tokenizer cannot be had.
        ValueError
            If it is not the model's own, or the word embeddings were released.
        """
        if self.word_embeddings is None:
            raise ValueError(
                f"backbone {self.name!r}: a text needs the word embeddings, found them released. "
                "Call embed_text before release_word_embeddings."
            )
        ids = token_ids(text, self._request, len(self.word_embeddings))
        return self.word_embeddings[torch.tensor(ids, dtype=torch.long)]

    @property
    def source(self) -> Pristine:
        """The process's pristine copy of the model, with the word embeddings."""
        # where the files are is looked up anew: a pickle may come from another machine
        return pristine(replace(self._request, source=source_of(self.name)))

    def release_word_embeddings(self) -> None:
        """Forget the word embeddings, once what needs them is derived."""
        self.word_embeddings = None

    def save_adapter(self, directory: Path) -> set[str]:
        """Write the adapter in PEFT's own format; returns its names in the ``state_dict``.

        ``PeftModel.from_pretrained(model, directory)`` loads it into the same Hugging Face model,
        cut to the same number of layers.
        """
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        config = getattr(self.model, "peft_config", {}).get(ADAPTER)
        if config is None:
            return set()
        directory.mkdir(parents=True, exist_ok=True)
        config = copy.copy(config)
        config.base_model_name_or_path = self.name
        config.inference_mode = True
        config.save_pretrained(str(directory))
        own = get_peft_model_state_dict(self.model, adapter_name=ADAPTER)
        tensors = {_PEFT_PREFIX + k: v.detach().cpu().contiguous() for k, v in own.items()}
        save_file(tensors, directory / _ADAPTER_FILE, metadata={"format": "pt"})
        return set(self._adapter_names())

    def load_adapter(self, directory: Path) -> dict[str, Tensor]:
        """Return what :meth:`save_adapter` wrote, by its names in the ``state_dict``."""
        from safetensors.torch import load_file

        if not (directory / _ADAPTER_FILE).is_file():
            return {}
        tensors = load_file(directory / _ADAPTER_FILE)
        names = self._adapter_names()
        return {name: tensors[key] for name, key in names.items() if key in tensors}

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return the adapter's tensors, trained or not, by their names in the ``state_dict``."""
        names, own = self._adapter_names(), self.model.state_dict()
        return {name: own[name.removeprefix("model.")] for name in names}

    def _adapter_names(self) -> dict[str, str]:
        """Return PEFT's name of every adapter tensor, by its name in the ``state_dict``."""
        from peft import get_peft_model_state_dict

        if not hasattr(self.model, "peft_config"):
            return {}
        own = get_peft_model_state_dict(self.model, adapter_name=ADAPTER)
        names = {name: name.replace(f".{ADAPTER}", "") for name in self.model.state_dict()}
        return {f"model.{n}": _PEFT_PREFIX + k for n, k in names.items() if k in own}

    def freeze_pristine(self) -> None:
        """Freeze what :meth:`prepare` left frozen, whatever was done to it since."""
        for name, parameter in self.named_parameters():
            if name in self._frozen:
                parameter.requires_grad_(False)

    def get_extra_state(self) -> dict[str, str]:
        """Return what tells whether rebuilt weights are the ones that were used."""
        return {"name": self.name, "fingerprint": self._fingerprint}

    def set_extra_state(self, state: Mapping[str, str]) -> None:
        """Refuse trained weights that belong to another language model."""
        if state["fingerprint"] != self._fingerprint:
            raise ValueError(
                f"backbone: the saved weights were trained on {state['name']!r} (fingerprint "
                f"{state['fingerprint'][:12]}), found {self.name!r} (fingerprint "
                f"{self._fingerprint[:12]}). Load them with the same backbone, "
                "backbone_layers, backbone_weights and backbone_kwargs."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "Backbone":
        duplicate = self.__class__.__new__(self.__class__)
        memo[id(self)] = duplicate
        for name, parameter in self.named_parameters():
            if name in self._frozen:
                memo[id(parameter)] = nn.Parameter(parameter.data, requires_grad=False)
        duplicate.__dict__ = copy.deepcopy(self.__dict__, memo)
        return duplicate

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if not self.is_stand_in:
            # transformers notes which outputs a class records when it makes one, per process
            with torch.device("meta"):
                type(self.model)(self.model.config)

    def _register_frozen(self) -> None:
        trains = {name for name, p in self.named_parameters() if p.requires_grad}
        tensors = [*self.named_parameters(), *self.named_buffers()]
        self._frozen = frozenset(name for name, _ in tensors if name not in trains)
        # an adapter may freeze what it drew at random
        self._rebuilt = self._frozen.difference(self._adapter_names())

    def check_positions(self, n_positions: int, chosen: bool = False) -> None:
        """Refuse more positions than the model has, and chosen ones where it knows none.

        Raises
        ------
        ValueError
            If the model cannot take them.
        """
        takes = self.is_stand_in or "position_ids" in signature(self.model.forward).parameters
        if chosen and not takes:
            raise ValueError(
                f"backbone {self.name!r} does not take the positions of its tokens, so they cannot "
                "be shared; use positions='ordered'."
            )
        for module in self._position_embeddings():
            limit = module.num_embeddings - self._first_position
            if n_positions > limit:
                raise ValueError(
                    f"backbone {self.name!r} takes at most {limit} tokens one after another, found "
                    f"{n_positions} (one per variate and covariate, and those of a prompt that "
                    "stands before them). Choose a backbone without learned positions (Llama- or "
                    "Qwen-like), or forecast fewer series at once."
                )

    def _position_embeddings(self) -> list[nn.Embedding]:
        """Return the learned position embeddings."""
        return [self.model.get_submodule(name) for name in self._positions]  # type: ignore[misc]


def _share(model: nn.Module) -> nn.Module:
    """Copy a module; its parameters are new objects on the same storage."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.data, requires_grad=False) for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def position_names(model: Any) -> list[str]:
    """Return the names of the learned position embeddings of a model."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and module.num_embeddings == limit
        and ("position" in name or name.split(".")[-1] == "wpe")
    ]


def _cut_positions(module: nn.Embedding, n_positions: int) -> None:
    module.weight = nn.Parameter(module.weight.data[:n_positions], requires_grad=False)
    module.num_embeddings = n_positions


def _drop_frozen(module: Any, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    for name in module._rebuilt:
        state_dict.pop(prefix + name, None)


def _fill_frozen(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name in module._rebuilt and not _is_non_persistent(module, name):
            state_dict.setdefault(prefix + name, tensor)


def _is_non_persistent(module: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    return leaf in module.get_submodule(path)._non_persistent_buffers_set


def _is_layer_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
