"""The HTTP edge: bodies to arrays, the runtime's answers to JSON, errors to problems. Nothing below it knows HTTP."""
