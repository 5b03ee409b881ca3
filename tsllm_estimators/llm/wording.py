"""Describers whose sentences a language model writes, from what the statistics say.

Each code is asked for once: answers are kept in memory and, beside the vectors of texts, on disk.
"""

import hashlib
import json
import re
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from torch import Tensor

from tsllm_estimators._validate import check_choice
from tsllm_estimators.llm import text_cache
from tsllm_estimators.llm.describe import StatisticalDescriber
from tsllm_estimators.llm.progress import ProgressBar

#: What happens where a language model gives no text: an error, or the statistical text.
ON_ERROR = ("raise", "statistical")

_VERSION = 1  # of how a text is asked for and cleaned
_MEMORY_BYTES = 16 * 2**20  # thousands of texts of several describers
_WRITE_SECONDS = 5.0  # so much of the answers may be lost if the process is killed
_REST_SECONDS = 60.0  # in which one that failed is not asked, where the statistical text will do
_MAX_CHARACTERS = 400
_INSTRUCTION = (
    "Describe the trend of a time series to a forecaster in one or two short sentences. Say what "
    "the facts below say in your own words, without numbers and without anything else.\nFacts: "
)

_memory = text_cache.Memory()
_asking = threading.Lock()
_resting: dict[str, float] = {}  # until when, by describer


class DescriberError(OSError):
    """A language model that cannot be had or does not answer."""


def clear_descriptions() -> None:
    """Forget the texts that this process holds, and which describers gave none."""
    _memory.clear()
    _resting.clear()


class WordingDescriber(ABC):
    """What the describers with a language model share: codes, instruction, caches, failures."""

    n_codes = StatisticalDescriber.n_codes
    is_reproducible = False

    def __init__(self, model: str, on_error: str) -> None:
        if not isinstance(model, str) or not model:
            raise TypeError(f"describer_kwargs['model'] must be a name, found {model!r}.")
        check_choice("describer_kwargs['on_error']", on_error, ON_ERROR)
        self.model = model
        self.on_error = on_error
        self._statistical = StatisticalDescriber()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self.model!r})"

    def codes(self, windows: Tensor) -> Tensor:
        """Return the code of each window, as the statistical describer."""
        return self._statistical.codes(windows)

    def text(self, code: int) -> str:
        """Return what a code says; see :meth:`texts`."""
        return self.texts([code])[0]

    def texts(self, codes: Sequence[int], progress: bool = False) -> list[str]:
        """Return what each code says, by the caches or the language model.

        Parameters
        ----------
        codes : sequence of int
            Equal ones are asked for once.
        progress : bool
            Show a bar on stderr if several seconds lie ahead.

        Raises
        ------
        OSError
            If the language model cannot be had or does not answer, and ``on_error="raise"``.
        ValueError
            If an answer has no text and ``on_error="raise"``, or an argument does not fit.

        Warns
        -----
        UserWarning
            With ``on_error="statistical"``, once for all codes that have the statistical text
            instead. They are asked for again by a later call.
        """
        facts = {int(code): self._statistical.text(int(code)) for code in codes}
        identity = json.dumps([_VERSION, self._identity()], sort_keys=True, default=str)
        keys = {
            code: hashlib.sha256((identity + _INSTRUCTION + fact).encode()).digest()
            for code, fact in facts.items()
        }
        found = _memory.get(keys.values())
        if len(found) < len(keys):
            with _asking:  # threads that need the same texts wait for the first one's
                found |= _memory.get(key for key in keys.values() if key not in found)
                stored = text_cache.read(key for key in keys.values() if key not in found)
                _memory.put(stored, _MEMORY_BYTES)
                found |= stored
                missing = {code: facts[code] for code in keys if keys[code] not in found}
                if missing:
                    found |= self._ask(missing, keys, identity, progress)
        return [found[keys[int(code)]].decode() for code in codes]

    def _ask(
        self, facts: dict[int, str], keys: dict[int, bytes], identity: str, progress: bool
    ) -> dict[bytes, bytes]:
        """Return the texts of codes by key; on the way the answers go into the caches."""
        if time.monotonic() < _resting.get(identity, 0.0) and self.on_error == "statistical":
            reason = f"{self} gave no answer less than {_REST_SECONDS:.0f} seconds ago"
            return self._instead(facts, keys, reason)
        done: dict[int, bytes] = {}
        pending: dict[bytes, bytes] = {}
        written, reason = time.monotonic(), ""
        bar = ProgressBar(progress, len(facts), "Describing windows")
        answers = self._answers({code: _INSTRUCTION + fact for code, fact in facts.items()})
        try:
            for code, answer in answers:
                text = _clean(answer)
                if text:
                    done[code] = pending[keys[code]] = text.encode()
                else:
                    reason = self._no_text(code, facts[code])
                    if self.on_error == "raise":
                        raise ValueError(reason)
                if time.monotonic() - written > _WRITE_SECONDS:
                    _keep(pending)
                    pending, written = {}, time.monotonic()
                bar.show(len(done), max(len(done), 1) / len(facts))
        except DescriberError as error:
            if self.on_error == "raise":
                raise
            _resting[identity] = time.monotonic() + _REST_SECONDS
            reason = str(error)
        finally:  # who is interrupted keeps what is done
            answers.close()
            bar.close()
            _keep(pending)
        failed = {code: fact for code, fact in facts.items() if code not in done}
        instead = self._instead(failed, keys, reason) if failed else {}
        return {keys[code]: text for code, text in done.items()} | instead

    def _instead(
        self, facts: dict[int, str], keys: dict[int, bytes], reason: str
    ) -> dict[bytes, bytes]:
        """Return the statistical texts of codes by key, with a warning."""
        warnings.warn(
            f"{len(facts)} descriptions are the statistical ones: {reason}",
            UserWarning,
            stacklevel=4,
        )
        return {keys[code]: fact.encode() for code, fact in facts.items()}

    def _no_text(self, code: int, fact: str) -> str:
        return (
            f"describer: expected a text for code {code} ({fact!r}), found an empty answer of "
            f"{self}. Let it write more tokens, choose another model, or pass "
            "describer_kwargs={..., 'on_error': 'statistical'}."
        )

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """Return all that shapes an answer beside the request."""

    @abstractmethod
    def _answers(self, requests: dict[int, str]) -> Generator[tuple[int, str]]:
        """Yield codes and answers in any order; it is closed when it is not read on."""


def _keep(texts: Mapping[bytes, bytes]) -> None:
    _memory.put(texts, _MEMORY_BYTES)
    text_cache.write(texts)


def _clean(answer: str) -> str:
    """Return an answer without a model's thoughts, in one line of bounded length."""
    answer = re.sub(r"<think>.*?(</think>|$)", " ", answer, flags=re.DOTALL)
    answer = answer.encode(errors="replace").decode()  # half a character has no bytes
    return " ".join(answer.split())[:_MAX_CHARACTERS].rstrip()
