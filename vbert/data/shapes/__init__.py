"""The `shapes` data set: a generator of scenes with boxes, captions, questions, statements, choices and oracles."""
