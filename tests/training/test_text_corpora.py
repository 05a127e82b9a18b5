import os
import subprocess
import sys

import pytest

from training.affect.text_corpora import Sentence, detokenise, overlapping, spoken

# Every sentence shares half of its words with one of the others and half with another, all words as rare as each other.
TIED = """
from training.affect.text_corpora import Sentence, overlapping
said = [Sentence(f"{k}", "rt", " ".join(f"w{k}x{i}" for i in range(8)), f"{k}") for k in range(400)]
others = [Sentence(f"o{k}", "sst", " ".join(f"w{k}x{i}" for i in range(4)), f"o{k}") for k in range(400)]
others += [Sentence(f"p{k}", "sst", " ".join([f"w{k}x{i}" for i in range(4, 8)] + ["and"] * 9 + [f"q{k}x{i}" for i in range(20)]), f"p{k}") for k in range(400)]
print(sorted(overlapping(said, others, 0.9)))
"""  # noqa: E501


def sentence(text: str, id_: str = "s") -> Sentence:
    return Sentence(id_, "rt", text, id_)


@pytest.mark.parametrize(
    ("text", "other", "doubles"),
    [
        ("a moving and deeply felt film", "A moving and deeply felt film .", True),
        ("moving and deeply felt", "a moving , deeply felt and quite beautiful film about loss", True),
        ("moving and deeply dull", "a moving , deeply felt and quite beautiful film about loss", True),  # 3 of 4
        ("slow and deeply dull", "a moving , deeply felt and quite beautiful film about loss", False),  # 2 of 4
        ("a very fine film", "a film", False),  # of so few words nothing follows
        ("nothing of it", "a moving and deeply felt film", False),
    ],
)
def test_a_sentence_doubles_another_whose_words_it_shares(text: str, other: str, doubles: bool) -> None:
    assert bool(overlapping([sentence(text)], [sentence(other, "o")])) == doubles


def test_what_doubles_does_not_hang_on_the_order_that_a_process_keeps_words_in() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", TIED],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_film_reviews_are_brought_back_into_spelling() -> None:
    assert detokenise("it 's not a film -lrb- that is , you wo n't like it -rrb- .") == (
        "it's not a film (that is, you won't like it)."
    )
    assert spoken("It's not a film -- you won't, like it.") == "It's not a film you won't like it"
