"""What a generation tells while it runs and when it ends: tokens, never media."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service.engine.snapshots import Snapshot


@dataclass(frozen=True)
class TokenDrawn:
    """One token of an answer.

    choice   which answer, from 0
    logprob  of the token, or None where none were asked for
    top      (id, logprob) of the likeliest ids, likeliest first; the token may be among them
    forced   the grammar left nothing else
    """

    choice: int
    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    forced: bool


@dataclass(frozen=True)
class ChoiceEnded:
    """The end of an answer, after its last token.

    finish_reason       stop: eos, a stop string, or the one medium asked for; length: max_tokens were drawn
    text_bytes_dropped  of the answer's last text, the bytes that are a stop string and what followed it
    """

    choice: int
    finish_reason: str
    text_bytes_dropped: int


@dataclass(frozen=True)
class ChoiceResult:
    """One whole answer: its tokens with sentinels and eos, and the rest as `ChoiceEnded` and `TokenDrawn` tell it.

    logprobs is empty where none were asked for.
    """

    tokens: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenDrawn, ...]
    text_bytes_dropped: int


@dataclass(frozen=True)
class Generation:
    """All answers to one prompt.

    prompt_tokens  by modality; sentinels are text, and bos is among them
    queue_s        until the first chunk ran; first_token_s and total_s count from the request's arrival
    deterministic  what ran promises the same bits whatever else is in the batch
    cached_tokens  of the prompt, those that did not run: the state after them was there
    snapshot       where it was asked for, the state after prompt and answer; where the answer ended at a stop string,
                   after the last token before the match
    unread         bytes of the answer's text that are part of it, and that the snapshot has not read: what the token
                   with which the match begins has before it
    """

    choices: tuple[ChoiceResult, ...]
    prompt_tokens: Mapping[str, int]
    queue_s: float
    first_token_s: float
    total_s: float
    deterministic: bool
    cached_tokens: int = 0
    snapshot: Snapshot | None = None
    unread: bytes = b""


# Called on the engine's thread, between steps: it must be quick and must not raise.
Listener = Callable[[TokenDrawn | ChoiceEnded], None]
