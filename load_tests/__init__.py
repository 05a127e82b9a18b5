"""Load on a running service, and what has to be true of it afterwards."""
