"""A describer that runs a causal language model in this process."""

import json
import zlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from tsllm_estimators._validate import check_integer, check_number
from tsllm_estimators.llm.pristine import first_line, quiet_transformers
from tsllm_estimators.llm.tokens import WHERE
from tsllm_estimators.llm.wording import DescriberError, WordingDescriber


class HuggingFaceDescriber(WordingDescriber):
    """A causal language model words the statistics of each code.

    Parameters
    ----------
    model : str
        Hugging Face id, or a local directory with config.json, model.safetensors and the files of
        the tokenizer. Its chat template is used if it has one.
    max_new_tokens : int
        Most tokens of an answer.
    batch_size : int
        Answers that are written at the same time.
    temperature : float
        0 takes the most likely token at each step; above it tokens are drawn.
    seed : int
        Of what is drawn, together with the code: neighbours in a batch do not matter.
    device : str, optional
        Where the model runs, by default where it is loaded (the CPU).
    model_kwargs : dict, optional
        Arguments of transformers' ``from_pretrained``, for instance ``dtype``, ``revision`` or
        ``local_files_only``. Only safetensors and no code of the repository unless it says so.
    on_error : str
        ``"raise"``, or ``"statistical"``: a warning and the statistical text if the model cannot
        be had or writes nothing.
    """

    def __init__(
        self,
        model: str,
        max_new_tokens: int = 48,
        batch_size: int = 16,
        temperature: float = 0.0,
        seed: int = 0,
        device: str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        on_error: str = "raise",
    ) -> None:
        super().__init__(model, on_error)
        check_integer("describer_kwargs['max_new_tokens']", max_new_tokens, 1)
        check_integer("describer_kwargs['batch_size']", batch_size, 1)
        check_number("describer_kwargs['temperature']", temperature)
        check_integer("describer_kwargs['seed']", seed, 0)
        if not isinstance(model_kwargs, Mapping | None):
            raise TypeError(
                "describer_kwargs['model_kwargs'] must be a dict or None, found an object of type "
                f"{type(model_kwargs).__name__}."
            )
        try:
            torch.device("cpu" if device is None else device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                "describer_kwargs['device'] must be a device of torch such as 'cpu' or 'cuda:0', "
                f"found {device!r}."
            ) from error
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.temperature = float(temperature)
        self.seed = seed
        self.device = device
        self.model_kwargs = dict(model_kwargs or {})
        self._loaded: _Writer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": None}  # copies find it, other processes load it

    def _identity(self) -> dict[str, Any]:
        without = {"token", "cache_dir", "local_files_only", "device_map"}
        return {
            "kind": "huggingface",
            "model": _source(self.model),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": self.seed if self.temperature else None,
            "model_kwargs": {k: v for k, v in self.model_kwargs.items() if k not in without},
        }

    def _answers(self, requests: dict[int, str]) -> Generator[tuple[int, str]]:
        self._loaded = writer = self._writer()
        codes = list(requests)
        for begin in range(0, len(codes), self.batch_size):
            batch = codes[begin : begin + self.batch_size]
            yield from zip(batch, self._write(writer, requests, batch), strict=True)

    def _writer(self) -> "_Writer":
        """Return model and tokenizer, shared by all describers that live and ask for the same."""
        asked = [_source(self.model), self.model_kwargs, self.device]
        key = json.dumps(asked, sort_keys=True, default=str)
        if (writer := _writers.get(key)) is None:
            _writers[key] = writer = _load(self.model, self.model_kwargs, self.device)
        return writer

    @torch.no_grad()
    def _write(self, writer: "_Writer", requests: dict[int, str], codes: list[int]) -> list[str]:
        model, tokenizer = writer.model, writer.tokenizer
        rows = [_prompt_ids(tokenizer, requests[code]) for code in codes]
        longest = max(map(len, rows))
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is not None and longest + self.max_new_tokens > limit:
            raise ValueError(
                f"describer_kwargs['max_new_tokens'] must be at most {limit - longest}: model "
                f"{self.model!r} takes {limit} tokens, of which the request needs {longest}; found "
                f"{self.max_new_tokens}. Choose fewer, or a model that takes more."
            )
        ids = torch.full((len(rows), longest), model.generation_config.pad_token_id)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):  # what is written on must stand at the end
            ids[i, longest - len(row) :] = torch.tensor(row)
            mask[i, longest - len(row) :] = 1
        draw = [_Draw(self.temperature, self.seed, codes)] if self.temperature else []
        # as the model is, also where a training computes in mixed precision
        with torch.autocast(model.device.type, enabled=False), torch.random.fork_rng(devices=[]):
            written = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=self.max_new_tokens,
                logits_processor=draw,
            )
        answers = written[:, longest:].tolist()
        return [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]


class _Draw:
    """Noise on logits with which the highest one is a draw from their softmax (Gumbel).

    Each text has a generator of its own, and no other one moves.
    """

    def __init__(self, temperature: float, seed: int, codes: list[int]) -> None:
        self._temperature = temperature
        seeds = [zlib.crc32(f"{seed} {code}".encode()) for code in codes]
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        shape = scores.shape[-1]
        rows = [torch.empty(shape).exponential_(generator=g) for g in self._generators]
        noise = torch.stack(rows).log().to(scores.device)
        return scores.float() / self._temperature - noise


@dataclass(eq=False)
class _Writer:
    """A language model and its tokenizer."""

    model: Any
    tokenizer: Any


_writers: "WeakValueDictionary[str, _Writer]" = WeakValueDictionary()


def _source(model: str) -> list[Any]:
    """Return what tells a model's files from others: its id, or the directory and its files."""
    folder = Path(model)
    if not folder.is_dir():
        return [model]
    files = [(file.name, file.stat()) for file in sorted(folder.iterdir())]
    return [str(folder.resolve()), [(name, s.st_size, s.st_mtime_ns) for name, s in files]]


def _load(name: str, kwargs: Mapping[str, Any], device: str | None) -> _Writer:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    kwargs = {"trust_remote_code": False, "use_safetensors": True, **kwargs}
    where = {k: v for k, v in kwargs.items() if k in WHERE}
    try:
        # the model may be needed within a forecast and, later, outside of it
        with (
            quiet_transformers(),
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
        ):
            tokenizer = AutoTokenizer.from_pretrained(name, **where)
            model, report = AutoModelForCausalLM.from_pretrained(
                name, output_loading_info=True, **kwargs
            )
            if device is not None:
                model = model.to(device)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise ValueError("The tokenizer has no vocabulary.")
        absent = sorted(report["missing_keys"])
        if absent:
            raise ValueError(f"It is no causal language model: {absent[0]} is missing.")
    except Exception as error:  # what goes wrong in tokenizers is a bare Exception
        raise DescriberError(
            f"describer='huggingface': model {name!r} cannot be loaded: {first_line(error)} Ways "
            "out: a local directory with config.json, model.safetensors and tokenizer.json of a "
            "causal language model; a download on a connected machine (`hf download ID`, then set "
            "HF_HOME to its cache); describer='statistical', which needs none."
        ) from error
    own = model.generation_config
    end = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    padding = padding[0] if isinstance(padding, list) else padding
    # without the model's own habits, such as drawing at a temperature
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=own.bos_token_id,
        eos_token_id=end,
        pad_token_id=padding if padding is not None else 0,
    )
    return _Writer(model.eval().requires_grad_(False), tokenizer)


def _prompt_ids(tokenizer: Any, request: str) -> list[int]:
    if not tokenizer.chat_template:
        ids: list[int] = tokenizer.encode(f"{request}\nDescription:", verbose=False)
        return ids
    asked = [{"role": "user", "content": request}]
    # templates of models that think before they speak know the last argument, others ignore it
    told = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, tokenize=False, enable_thinking=False
    )
    ids = tokenizer.encode(told, add_special_tokens=False, verbose=False)  # the template has them
    return ids
