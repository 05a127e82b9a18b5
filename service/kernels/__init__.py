"""The recurrent ops. A folder an op: its contract in `__init__`, its backends beside it.

All ops take *packed* sequences: sequence i is the rows offsets[i]:offsets[i+1] of the time axis. They start each
sequence from its slot's row of `state` and leave the row at the sequence's end, in place; where `fresh` is set they
start from the initial state whatever the row holds. One step of decoding is the case of length one.
"""
