"""A language model's own objective on texts: the next word, or words that are hidden from it.

Axes: b text, t token, d width of the language model, n predicted token, v word.
"""

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsllm_estimators._validate import check_integer
from tsllm_estimators.llm.backbone import Backbone
from tsllm_estimators.llm.pristine import cut_config, quiet_transformers, seeded
from tsllm_estimators.llm.stand_ins import STAND_INS
from tsllm_estimators.llm.tokens import WHERE, many_token_ids, special_ids
from tsllm_estimators.llm.traits import traits

_MASKED = 0.15  # of the tokens; BERT's shares (arXiv 1810.04805, section 3.1)
_HIDDEN, _REPLACED = 0.8, 0.1  # of these, the rest stays as it is
_SAMPLE = 64  # texts on which the loss is told
_IGNORED = -100


class Batch(NamedTuple):
    """Some texts as the model reads them.

    Attributes
    ----------
    ids : Tensor
        Words, shape (b, t), int64; 0 after the end of a text.
    real : Tensor
        Which of them are a text's, shape (b, t), bool.
    targets : Tensor
        What is to be predicted at each token, shape (b, t), int64; -100 where nothing is.
    """

    ids: Tensor
    real: Tensor
    targets: Tensor


class LanguageModelling(nn.Module):
    """What a language model is trained for, on a corpus: next words, or masked ones.

    A causal model predicts each next token. Any other sees 15 % of a text's tokens, at least one
    and never a special one, replaced (80 % by the mask token, 10 % by a random word, 10 % by
    themselves) and predicts what stood there. Source: arXiv 1810.04805, section 3.1.

    The head that turns states into words is the checkpoint's own. Where it holds none (MiniLM's
    does not), a word's logit is the product of its embedding and the layer-normed state, divided
    by the deviation that such products have: logits are of order one whatever the size of the
    embeddings, and nothing in the head is drawn at random. The head is frozen and saved nowhere.

    Dropout of the language model is off; the adapter's own acts during training.

    Parameters
    ----------
    backbone : Backbone
        The language model, prepared: what of it trains is chosen.
    texts : sequence of str
        The corpus; a text counts as often as it stands there.
    steps : int
        Steps of training.
    lr : float
        Learning rate of its first steps.
    batch_size : int
        Texts of a step, drawn from the corpus with replacement.
    seed : int
        Of the draws of texts and masks, and of the adapter's dropout.

    Raises
    ------
    OSError
        If the model's tokenizer cannot be had.
    ValueError
        If the backbone is a stand-in, its tokenizer has no mask token though the model is not
        causal, or no text has a token to predict.
    """

    def __init__(
        self,
        backbone: Backbone,
        texts: Sequence[str],
        *,
        steps: int,
        lr: float,
        batch_size: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_integer("lm_steps", steps, 1)
        check_integer("lm_batch_size", batch_size, 1)
        if backbone.is_stand_in:
            raise ValueError(
                f"backbone must be a language model where it is fine-tuned on texts, found the "
                f"stand-in {backbone.name!r}. Choose none of {list(STAND_INS)}, or lm_steps=0."
            )
        self.backbone = backbone
        self.steps, self.lr, self.batch_size, self.seed = steps, lr, batch_size, seed
        source = backbone.source
        self._request = source.request
        self._traits = traits(source.request)
        self._mask_id, self._special = special_ids(source.request)
        if not self._traits.causal and self._mask_id is None:
            raise ValueError(
                f"backbone {backbone.name!r} is not causal and so learns from masked words, but "
                "its tokenizer has no mask token; name one as mask_token in its "
                "tokenizer_config.json, choose a causal backbone, or lm_steps=0."
            )
        self.words = nn.Embedding.from_pretrained(source.word_embeddings)  # frozen
        with seeded(0):  # transformers draws what a checkpoint lacks
            head = _own_head(self) or WordHead(self.words)
        self.head: nn.Module = head  # (n, d) to logits (n, v)
        self.head.eval().requires_grad_(False)
        self._counts = self._countable(Counter(texts))
        self._rows = list(self._counts)

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean loss over the predicted tokens, in nats.

        1. Look up the words, in the model's dtype.
        2. Run the layers; what stands after a text is masked, or comes too late to be seen.
        3. Compute logits where something is predicted, and there only: (n, v).
        """
        model: Any = self.backbone.model
        own = next(model.parameters()).dtype
        # a causal model sees nothing after a text's end; with a mask an encoder that was made
        # causal would turn back into one that looks both ways
        extra: dict[str, Any] = {}
        if not self._traits.causal:
            extra["attention_mask"] = batch.real.long()
        if "use_cache" in inspect.signature(model.forward).parameters:
            extra["use_cache"] = False
        tokens = self.words(batch.ids).to(own)  # (b, t, d)
        states = model(inputs_embeds=tokens, **extra).last_hidden_state  # (b, t, d)
        chosen = batch.targets != _IGNORED
        logits = self.head(states[chosen].to(self.words.weight.dtype))  # (n, v)
        return F.cross_entropy(logits.float(), batch.targets[chosen])

    def train(self, mode: bool = True) -> "LanguageModelling":
        """Switch the adapter's dropout; the language model's stays off."""
        super().train(mode)
        self.backbone.eval()
        for module in _adapter_dropouts(self.backbone):
            module.train(mode)
        return self

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the training, the same ones at every call."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            yield self._draw(self.batch_size, generator)

    def sample(self) -> Iterator[Batch]:
        """Yield a fixed sample of the corpus with fixed masks, whatever the seed."""
        generator = torch.Generator().manual_seed(0)
        for begin in range(0, _SAMPLE, 32):
            yield self._draw(min(32, _SAMPLE - begin), generator)

    @torch.no_grad()
    def mean_loss(self) -> float:
        """Return the mean loss over the predicted tokens of :meth:`sample`, without dropout."""
        was_training, device = self.training, self.words.weight.device
        self.eval()
        total, n_predicted = 0.0, 0
        for batch in self.sample():
            n = int((batch.targets != _IGNORED).sum())
            total += n * self(Batch(*(part.to(device) for part in batch))).item()
            n_predicted += n
        self.train(was_training)
        return total / n_predicted

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what trains, by its name in the backbone."""
        return {name: p for name, p in self.backbone.named_parameters() if p.requires_grad}

    def key(self) -> str:
        """Return a hash of all that decides what is learned, but the machine.

        It takes the adapter as it is now: ask before the training.
        """
        configs = getattr(self.backbone.model, "peft_config", {})
        settings = [config.to_dict() for config in configs.values()]
        corpus = [[*row, n] for row, n in self._counts.items()]
        numbers = [self.steps, self.lr, self.batch_size, self.seed]
        told = [self._request.key, self._traits.fingerprint, settings, corpus, numbers]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
        adapter = self.backbone.adapter_tensors()
        for name, tensor in sorted({**adapter, **self.trainable()}.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _countable(self, texts: "Counter[str]") -> dict[tuple[int, ...], int]:
        """Return how often the tokens of each text occur, of texts with something to predict."""
        distinct = sorted(texts)  # whatever the order of the windows
        n_words = self.words.num_embeddings
        rows = many_token_ids(distinct, self._request, n_words, self._traits.limit)
        counts: Counter[tuple[int, ...]] = Counter()
        for text, row in zip(distinct, rows, strict=True):
            n_predictable = len(row) - 1 if self._traits.causal else len(self._maskable(row))
            if n_predictable > 0:
                counts[tuple(row)] += texts[text]
        if not counts:
            raise ValueError(
                f"texts: the language model is fine-tuned on their words, found {len(texts)} "
                "distinct texts and no word in them; use another describer, or lm_steps=0."
            )
        return dict(counts)

    def _maskable(self, row: Sequence[int]) -> list[int]:
        special = set(self._special)
        return [place for place, word in enumerate(row) if word not in special]

    def _draw(self, n_texts: int, generator: torch.Generator) -> Batch:
        weights = torch.tensor(list(self._counts.values()), dtype=torch.float64)
        drawn = torch.multinomial(weights, n_texts, replacement=True, generator=generator)
        rows = [self._rows[i] for i in drawn.tolist()]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        real = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)  # (b, t)
        if self._traits.causal:
            targets = F.pad(ids.masked_fill(~real, _IGNORED)[:, 1:], (0, 1), value=_IGNORED)
            return Batch(ids, real, targets)
        return self._masked(ids, real, generator)

    def _masked(self, ids: Tensor, real: Tensor, generator: torch.Generator) -> Batch:
        """Hide words of each text: those whose draws are lowest, 15 % and at least one."""
        special = torch.tensor(self._special, dtype=torch.long)
        open_to = real & ~torch.isin(ids, special)  # (b, t)
        draws = torch.rand(ids.shape, generator=generator).masked_fill(~open_to, 2.0)
        ranks = draws.argsort(1).argsort(1)
        wanted = (open_to.sum(1, keepdim=True) * _MASKED).round().clamp(min=1)
        chosen = (ranks < wanted) & open_to
        targets = ids.masked_fill(~chosen, _IGNORED)
        fate = torch.rand(ids.shape, generator=generator)
        ordinary = torch.ones(self.words.num_embeddings, dtype=torch.float64)
        ordinary[special] = 0
        other = torch.multinomial(ordinary, ids.numel(), replacement=True, generator=generator)
        hidden = chosen & (fate < _HIDDEN)
        replaced = chosen & (fate >= _HIDDEN) & (fate < _HIDDEN + _REPLACED)
        assert self._mask_id is not None
        seen = ids.masked_fill(hidden, self._mask_id)
        return Batch(torch.where(replaced, other.view_as(ids), seen), real, targets)


class WordHead(nn.Module):
    """Logits from the word embeddings alone, of deviation one for embeddings at random."""

    def __init__(self, words: nn.Embedding) -> None:
        super().__init__()
        self.words = words
        deviation = words.weight.float().square().mean().sqrt().item()
        self.scale = 1 / (deviation * words.embedding_dim**0.5)

    def forward(self, states: Tensor) -> Tensor:
        """Map states (n, d) to logits (n, v)."""
        normed = F.layer_norm(states.float(), states.shape[-1:]) * self.scale
        return F.linear(normed.to(states.dtype), self.words.weight)


class CheckpointHead(nn.Module):
    """The head that a Hugging Face model with one puts on its layers' states."""

    def __init__(self, model: Any, words: nn.Embedding) -> None:
        super().__init__()
        output = model.get_output_embeddings()
        setattr(model, model.base_model_prefix, _Given())
        if torch.equal(output.weight.detach(), words.weight):  # tied: one copy is enough
            output.weight = words.weight
        self.model = model

    def forward(self, states: Tensor) -> Tensor:
        """Map states (n, d) to logits (n, v)."""
        return self.model(inputs_embeds=states.unsqueeze(0)).logits.squeeze(0)


class _Given(nn.Module):
    """Stands in place of a model's layers and returns the states that it is given."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


def _own_head(stage: LanguageModelling) -> CheckpointHead | None:
    """Return the head that the model's checkpoint holds, if it does."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
    )

    request = stage._request
    if request.weights == "random" or request.backbone == "tiny":
        return None
    kinds = [
        (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
        (MODEL_FOR_MASKED_LM_MAPPING, AutoModelForMaskedLM),
    ]
    mapping, kind = kinds[0 if stage._traits.causal else 1]
    where = {k: v for k, v in request.kwargs.items() if k in WHERE}
    where = {"trust_remote_code": False, **where}
    with quiet_transformers():
        config = AutoConfig.from_pretrained(request.source, **where)
        if type(config) not in mapping:
            return None
        cut_config(config, replace(request, layers=1))  # the head is all that is kept
        model, report = kind.from_pretrained(
            request.source,
            config=config,
            dtype=stage.words.weight.dtype,
            use_safetensors=True,
            output_loading_info=True,
            **where,
        )
    inside = f"{model.base_model_prefix}."
    if any(not name.startswith(inside) for name in report["missing_keys"]):
        return None
    return CheckpointHead(model, stage.words)


def _adapter_dropouts(model: nn.Module) -> Iterator[nn.Module]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            for name, module in layer.named_modules():
                if isinstance(module, nn.Dropout) and not name.startswith("base_layer"):
                    yield module
