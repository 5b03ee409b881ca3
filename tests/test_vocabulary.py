"""Texts as numbers: one code for each, that carriers of float32 and of digits keep."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from darts import TimeSeries

from tsllm_estimators.darts._texts import Digits, split_digits, without_texts
from tsllm_estimators.llm import vocabulary
from tsllm_estimators.llm.calendar import Stamp
from tsllm_estimators.llm.vocabulary import (
    POSITION,
    Span,
    Vocabulary,
    column_codes,
    column_entries,
    numbers_of,
    text_of,
)

STAMPS = [Stamp(month=1), Stamp(month=2)]


@pytest.fixture(autouse=True)
def _of_this_test(monkeypatch):
    monkeypatch.setattr(vocabulary, "_columns", {})


def test_codes_count_from_one_and_stay():
    said = Vocabulary()
    assert said.codes(["a", None, "b", "", "a", STAMPS[0]]).tolist() == [1, 0, 2, 0, 1, 3]
    assert said.codes(["new", "b"]).tolist() == [4, 2]
    assert said.entries == ["a", "b", STAMPS[0], "new"]
    assert "b" in said
    assert "c" not in said
    assert said.codes([]).shape == (0,)
    assert said.codes(["a"]).dtype == np.int64


def test_a_stamp_is_not_the_text_that_it_is_read_as():
    said = Vocabulary()
    stamp, text = STAMPS[0], text_of(STAMPS[0])
    assert said.codes([stamp, text]).tolist() == [1, 2]
    first, second = column_codes([stamp, text])
    assert first != second


def test_entries_are_read_and_counted():
    assert text_of(POSITION) == ""
    assert text_of("as it is") == "as it is"
    assert text_of(STAMPS[1]) == "February"
    span = Span(*STAMPS)
    assert "January" in text_of(span)
    assert "February" in text_of(span)
    assert numbers_of(span) == numbers_of(STAMPS[0]) + numbers_of(STAMPS[1])


def test_codes_of_columns_survive_float32():
    texts = [f"text {i}" for i in range(5000)]
    codes = column_codes([*texts, None, ""])
    assert np.array_equal(codes, codes.astype(np.float32))
    assert len(set(codes.tolist())) == len(texts) + 1
    entries, positions = column_entries("x", codes.astype(np.float32), {})
    assert [entries[p] for p in positions] == [*texts, None, None]


def test_texts_whose_hashes_meet_have_codes_of_their_own(monkeypatch):
    monkeypatch.setattr(vocabulary.zlib, "crc32", lambda _: 2**24 - 1)
    codes = column_codes(["a", "b", "c", "a"])
    assert codes.tolist() == [2**24 - 1, 1, 2, 2**24 - 1]  # never 0, which is no text
    entries, positions = column_entries("x", codes, {})
    assert [entries[p] for p in positions] == ["a", "b", "c", "a"]


def test_threads_agree_on_codes():
    texts = [f"text {i}" for i in range(300)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: column_codes(texts).tolist(), range(8)))
    assert all(codes == found[0] for codes in found)


def test_every_process_gives_the_same_codes():
    assert column_codes(["public holiday", "Streik"]).tolist() == [3436218.0, 16749591.0]


@pytest.mark.parametrize("code", [1.0, 12345.0, 0.5, -3.0, 2.0**24, 1e30])
def test_codes_that_nobody_gave_are_refused(code):
    column_codes(["a"])
    with pytest.raises(
        ValueError, match=r"^event: expected codes of texts, found .* do not scale it"
    ):
        column_entries("event", np.array([0.0, code]), {})


def test_half_a_code_is_refused_although_its_whole_is_known():
    (code,) = column_codes(["a"])
    with pytest.raises(ValueError, match=r"expected codes of texts, found \d+\.5"):
        column_entries("event", np.array([code + 0.5]), {})


def test_what_travels_with_a_column_goes_first():
    (code,) = column_codes(["of this process"])
    entries, _ = column_entries("event", np.array([code]), {int(code): "of another"})
    assert entries == ["of another"]


def test_missing_values_are_no_text():
    entries, positions = column_entries("event", np.array([np.nan, 0.0, np.nan]), {})
    assert [entries[p] for p in positions] == [None] * 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_precision_keeps_digits(dtype):
    said = Vocabulary()
    said.entries = [*range(127 * 128)]  # as if there were so many already
    texts = [f"text {i}" for i in range(200)]
    series = TimeSeries.from_values(np.zeros((200, 1), np.float32))
    from tsllm_estimators.darts import text_covariates

    column = text_covariates(texts, series, "event")
    settings = {"description": None, "stamps": "recurring", "dynamic": "step"}
    digits = Digits({"columns"}, said, str, settings, 4).future([series], [column], 0)[0]
    values = torch.tensor(digits.values()[None]).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        numbers, codes = split_digits(values, 1)
    assert numbers is None
    assert [said.entries[code - 1] for code in codes[0, :, 0].tolist()] == texts


def test_digits_stand_behind_the_numbers():
    values = torch.tensor([[[0.5, 3.0, 1.0, 0.0, 2.0, 0.0, 1.0]]])
    numbers, codes = split_digits(values, 2)
    assert numbers.tolist() == [[[0.5]]]
    assert codes.tolist() == [[[3 + 128, 2 + 128**2]]]
    assert without_texts(values, 2).tolist() == [[[0.5, *[0.0] * 6]]]
    assert split_digits(values, 0)[0] is without_texts(values, 0) is values
    assert split_digits(None, 2) == (None, None)
