"""What a darts model does so that its network reads texts: series in, digits out."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tsllm_estimators.darts._texts import (
    DESCRIPTION,
    Digits,
    has_texts,
    is_text,
    n_digits,
    n_numbers,
    text_columns,
    with_texts,
)
from tsllm_estimators.llm.prompts import compose_prompt
from tsllm_estimators.llm.vocabulary import Vocabulary
from tsllm_estimators.networks import network_class


class ReadsTexts:
    """The part of a darts model that puts the texts of series into covariates.

    Attributes
    ----------
    text_columns : dict of list of str or None
        The user's ``"past"`` and ``"future"`` covariates that stand for texts, once the model has
        been trained on series.
    """

    text_columns: dict[str, list[str]] | None = None
    _vocabulary: Vocabulary | None = None  # of a network that is yet to be made

    @property
    def _texts_read(self: Any) -> frozenset[str]:
        """What datasets carry for the network; the one description of all series it knows."""
        read = network_class(self.method).Config(**self._settings).texts_read
        differ = isinstance(self._settings.get("description"), Mapping)
        return read if differ else read - {"static"}

    def _carried(self) -> tuple[list[str], dict[str, int]]:
        """Return which texts the datasets carry, and how many of the user's columns."""
        if self.text_columns is None:  # trained on a dataset of windows
            return [], {"past": 0, "future": 0}
        read = self._texts_read
        counts = {k: len(v) if "columns" in read else 0 for k, v in self.text_columns.items()}
        return [name for name in ("stamps", "static") if name in read], counts

    def _numbers(self, sample: Any) -> dict[str, int]:
        """Return how many past and future covariates of a sample are numbers."""
        own, counts = self._carried()
        n = sample.component_dims()
        return {
            "past": n_numbers(n["past_covariates"], counts["past"]),
            "future": n_numbers(n["future_covariates"], len(own) + counts["future"]),
        }

    def _with_digits(
        self: Any, series: Sequence[Any], past: Any, future: Any, n_ahead: int
    ) -> tuple[Any, Any]:
        """Return covariates in which texts are digits; future ones ``n_ahead`` steps after."""
        if not network_class(self.method).reads_text:
            _refuse({"past": past, "future": future}, "reads no text", self)
            return past, future
        given = {"past": past, "future": future}
        for kind, covariates in given.items():
            _check_alike(f"{kind}_covariates", series, covariates)
        found = {kind: text_columns(covariates) for kind, covariates in given.items()}
        if self.text_columns is None:
            if self.model is not None:  # trained on a dataset of windows
                _refuse(given, "which was trained on a dataset, knows no text", self)
                return past, future
            self.text_columns = found
        for kind, names in found.items():
            if names != self.text_columns[kind]:
                raise ValueError(
                    f"{kind}_covariates: expected the components of text "
                    f"{self.text_columns[kind]!r}, as in the training series, found {names!r}."
                )
            if self.model is not None and given[kind] is not None:
                # darts would count the digits, too
                expected = self._numbers(self.train_sample)[kind]
                n = sum(not is_text(name) for name in given[kind][0].components)
                if n != expected:
                    raise ValueError(
                        f"{kind}_covariates: received components that are no texts: `{n}`, "
                        f"expected: `{expected}`."
                    )
        read, described = self._texts_read, self._settings["description"]
        names = [one.components[0] for one in series]
        given_with = future is not None and DESCRIPTION in future[0].components
        is_checked = self.model is None and "static" in read and not given_with
        if is_checked and not set(names) & set(described):
            raise ValueError(
                f"description: expected texts by the first component of a series, such as "
                f"{names[0]!r}, found the keys {list(described)!r}."
            )
        if not read:  # or one description only
            vocabulary = Vocabulary()
        elif self.model is not None:
            vocabulary = self.model.network.texts.vocabulary
        else:
            vocabulary = self._vocabulary = self._vocabulary or Vocabulary()

        sizes = {"context_length": self.input_chunk_length, "horizon": self.output_chunk_length}
        prompt = partial(compose_prompt, **sizes)
        digits = Digits(read, vocabulary, prompt, self._settings, self.input_chunk_length)
        return digits.past(series, past, n_ahead), digits.future(series, future, n_ahead)

    def to_onnx(self: Any, path: str | None = None, **kwargs: Any) -> None:
        """As darts' ``to_onnx``; refused where there are texts, which its runner cannot make.

        Raises
        ------
        ValueError
            If the model reads a calendar, columns of text or several descriptions, or describes
            the windows.
        """
        if self.model is not None and self.model.network.describes_windows:
            raise ValueError(
                "to_onnx: darts' runner puts no window into words, found a model that reads "
                "descriptions of them; train it with text='none'."
            )
        own, counts = self._carried()
        if own or any(counts.values()):
            raise ValueError(
                "to_onnx: darts' runner makes no texts of a series, found a model that reads them; "
                "train it with text='none', or with text='static' and one description."
            )
        super().to_onnx(path, **kwargs)  # type: ignore[misc]

    def _setup_for_fit_from_dataset(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As darts; a model that is yet to be trained takes any columns, the first ones it sees."""
        if self.model is None:
            self.text_columns = self._vocabulary = None
        return super()._setup_for_fit_from_dataset(*args, **kwargs)  # type: ignore[misc]

    def _sample_shapes(self: Any, shapes: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict:
        """Return the shapes of samples, given those of a model with other ``arguments``.

        What they carry depends on whether there are several descriptions.
        """
        saved = type(self)(**arguments)
        saved.text_columns = self.text_columns
        (was, counted), (own, counts) = saved._carried(), self._carried()
        n_past = counts["past"] - counted["past"]
        n_future = counts["future"] - counted["future"] + len(own) - len(was)
        found, lengths = dict(shapes), (self.input_chunk_length, self.output_chunk_length)
        for name, length, n_codes in [
            ("past_covariates", lengths[0], n_past),
            ("historic_future_covariates", lengths[0], n_future),
            ("future_covariates", lengths[1], n_future),
        ]:
            width = (shapes[name][1] if shapes[name] else 0) + n_digits(n_codes)
            found[name] = [length, width] if width else None
        return found

    def __getstate__(self: Any) -> dict[str, Any]:
        state: Any = super().__getstate__()
        for name in ("past_covariate_series", "future_covariate_series"):
            state[name] = with_texts(state[name])
        return state

    def _load_encoders(self: Any, saved: Any, load_encoders: bool) -> Any:
        """As darts; the model that a checkpoint belongs to also tells what its columns are."""
        self.text_columns = saved.text_columns
        return super()._load_encoders(saved, load_encoders)  # type: ignore[misc]

    def _update_covariates_use(self: Any) -> None:
        """As darts, but digits are no covariates: the user need not pass them."""
        super()._update_covariates_use()  # type: ignore[misc]
        if self.text_columns is None:
            return
        numbers = self._numbers(self.train_sample)
        for kind, n in numbers.items():
            uses = n > 0 or bool(self.text_columns[kind])
            setattr(self, f"_uses_{kind}_covariates", uses)
            kept = getattr(self, f"{kind}_covariate_series")
            setattr(self, f"_expect_{kind}_covariates", uses and kept is None)


def _refuse(covariates: Mapping[str, Any], why: str, model: Any) -> None:
    """Raise if any component stands for texts."""
    for kind, given in covariates.items():
        if has_texts(given):
            raise ValueError(
                f"{kind}_covariates: {type(model).__name__} {why}, found the components "
                f"{text_columns(given)!r}; leave them out, or use a LeMoLEModel fitted with them."
            )


def _check_alike(name: str, series: Sequence[Any], covariates: Sequence[Any] | None) -> None:
    """Raise unless there are covariates for each series, with the same components of text."""
    if covariates is None:
        return
    if len(covariates) != len(series):
        raise ValueError(
            f"{name}: expected as many as series, {len(series)}, found {len(covariates)}."
        )
    first = [is_text(component) for component in covariates[0].components], text_columns(covariates)
    for number, one in enumerate(covariates):
        if ([is_text(component) for component in one.components], text_columns([one])) != first:
            raise ValueError(
                f"{name}: expected the components {list(covariates[0].components)!r}, those of the "
                f"first, found {list(one.components)!r} in number {number}."
            )
