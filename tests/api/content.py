"""Answers of the engine as content, without a server."""

from __future__ import annotations

from service.codecs.assembly import Assembler, Content
from service.engine.generation import ChoiceResult
from service.served import GenerativeModel


def contents(choice: ChoiceResult, model: GenerativeModel) -> list[Content]:
    """The parts that a choice's tokens make."""
    assembler = Assembler(model.vocabulary, model.codecs)
    for token in choice.tokens:
        assembler.feed(token)
    assembler.finish(choice.text_bytes_dropped)
    return assembler.parts
