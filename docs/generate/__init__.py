"""Reference pages made from the code: ``python -m docs.generate`` writes them, a test fails when one is stale."""
