from __future__ import annotations

import pytest
import torch

from service.codecs.vector_quantizer import ROWS_AT_ONCE, Codebook


def a_codebook(size: int = 16, width: int = 5) -> Codebook:
    return Codebook(torch.randn(size, width, generator=torch.Generator().manual_seed(0)))


def test_the_nearest_code_is_found_as_in_float64():
    book = a_codebook()
    x = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(1))
    expected = torch.cdist(x.double().reshape(-1, 5), book.codes.double()).argmin(dim=1).reshape(3, 7)
    ids = book.encode(x)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, expected)


def test_codes_survive_a_round_trip():
    book = a_codebook()
    ids = torch.arange(16).reshape(4, 4)
    assert torch.equal(book.encode(book.decode(ids)), ids)


def test_of_equally_near_codes_the_lowest_is_taken():
    book = Codebook(torch.tensor([[9.0, 9.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]))
    assert book.encode(torch.zeros(2)).item() == 1


def test_a_vector_far_from_the_origin_finds_its_neighbour():
    """|x|² - 2xc + |c|² loses the difference between codes here."""
    book = Codebook(torch.tensor([[4096.0], [4096.25]]))
    assert book.encode(torch.tensor([[4096.2], [4096.1]])).tolist() == [1, 0]


def test_a_vector_is_coded_the_same_alone_and_in_a_large_batch():
    book = a_codebook()
    x = torch.randn(ROWS_AT_ONCE + 3, 5, generator=torch.Generator().manual_seed(2))
    whole = book.encode(x)
    for row in (0, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, ROWS_AT_ONCE + 2):
        assert book.encode(x[row]) == whole[row]


def test_no_vectors_are_legal():
    assert a_codebook().encode(torch.empty(0, 3, 5)).shape == (0, 3)
    assert a_codebook().decode(torch.empty(0, dtype=torch.int64)).shape == (0, 5)


@pytest.mark.parametrize("ids", [[-1, 0], [0, 16]])
def test_ids_outside_the_codebook_are_refused(ids):
    with pytest.raises(ValueError, match="0 to 15"):
        a_codebook().decode(torch.tensor(ids))


def test_ids_that_are_no_integers_are_refused():
    with pytest.raises(ValueError, match="integers"):
        a_codebook().decode(torch.tensor([0.0]))


def test_vectors_of_another_width_are_refused():
    with pytest.raises(ValueError, match="vectors of 5"):
        a_codebook().encode(torch.zeros(2, 4))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_a_table_without_rows_or_columns_is_refused(shape):
    with pytest.raises(ValueError, match="neither of them 0"):
        Codebook(torch.zeros(shape))
