"""The service on several machines, as applications of Ray Serve. Needs the extra `cluster`."""
