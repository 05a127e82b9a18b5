"""The recipe of the bundled checkpoint `affect-small`: `python -m training.affect --data DIR --work DIR --out DIR`."""
