"""What a conversation has beside its state: ids that it has not read yet, at most those of a stop string's token."""

from __future__ import annotations

import numpy as np

from service.codecs.text import TextCodec
from service.engine.snapshots import Snapshot
from service.errors import InvalidInput
from service.models.vocabulary import TEXT, Vocabulary

UNREAD = "unread"
MOST_UNREAD = 256


def begin_with(state: Snapshot | None, vocabulary: Vocabulary) -> tuple[list[int], Snapshot | None]:
    """What the next prompt begins with, bos or what is unread, and the state that it goes on from.

    A state of no steps is the initial one. Raises InvalidInput at ("snapshot",) for what cannot be unread.
    """
    if state is None or state.steps == 0:
        return [] if vocabulary.bos is None else [vocabulary.bos], None
    if not state.aside:
        return [], state
    ids = state.aside.get(UNREAD)
    wanted = f"up to {MOST_UNREAD} int64 ids of text named {UNREAD!r}"
    if set(state.aside) != {UNREAD} or ids is None or ids.dtype != np.int64 or ids.ndim != 1:
        raise InvalidInput.at(("snapshot",), f"beside its state it has {sorted(state.aside)}, expected {wanted}")
    unread = ids.tolist()
    words = set(vocabulary.span(TEXT)) - set(vocabulary.sentinels) if len(unread) <= MOST_UNREAD else set()
    if not words.issuperset(unread):
        raise InvalidInput.at(("snapshot",), f"beside its state it has other ids than {wanted}")
    return unread, state


def with_unread(state: Snapshot, unread: bytes, codec: TextCodec | None) -> Snapshot:
    """The state, and beside it the part of a token's text that comes before a stop string."""
    ids = codec.encode(unread.decode("utf-8", "ignore")) if codec is not None else []
    return state.beside({UNREAD: np.array(ids, np.int64)} if ids else {})
